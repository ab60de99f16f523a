"""When a training is validated."""

from __future__ import annotations

from typing import Any

from ignite.engine import Events
from monai.handlers import ValidationHandler


class EarlyValidation(ValidationHandler):
    """MONAI's `ValidationHandler`, with a first validation before the first step.

    What would fail in validation (memory, a damaged scan) fails at once instead of an hour later, and TensorBoard has
    the figures of the untrained network. MONAI's `exec_at_start` does this twice over, because it counts from epoch 0.

    Args:
        validator: the evaluator.
        interval: epochs between two validations.
    """

    def __init__(self, validator: Any, interval: int = 1) -> None:
        super().__init__(interval, validator, epoch_level=True)
        self.evaluator = validator

    def attach(self, engine: Any) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        self.evaluator.run(max(engine.state.epoch, 1))
