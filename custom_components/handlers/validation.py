"""When and on what a training is validated."""

from __future__ import annotations

from typing import Any

from ignite.engine import Events
from monai.data.utils import set_rnd
from monai.handlers import ValidationHandler
from monai.transforms import Randomizable


class EarlyValidation(ValidationHandler):
    """MONAI's `ValidationHandler` that also validates before the first step and after the last epoch.

    What would fail in validation (memory, a damaged scan) fails at once instead of an hour later, TensorBoard has the
    figures of the untrained network, and the network at the end takes part in the choice of the best. MONAI's
    `exec_at_start` validates twice over, because it counts from epoch 0.

    Nothing happens where there are no validation scans. Random transforms of the validation are seeded anew each time,
    so that all validations see the same crops.

    Args:
        validator: the evaluator.
        interval: epochs between two validations; 0 never validates.
        seed: seed of the validation's random transforms.
        augmentation: what augments the validation's batches on the device, not shared with the training; or None.
    """

    def __init__(
        self, validator: Any, interval: int = 1, seed: int = 0, augmentation: Randomizable | None = None
    ) -> None:
        super().__init__(max(interval, 1), validator, epoch_level=True)
        self.never = interval == 0
        self.evaluator, self.seed, self.augmentation = validator, seed, augmentation

    def attach(self, engine: Any) -> None:
        if self.never:
            return

        def due(engine: Any, epoch: int) -> bool:
            return epoch % self.interval == 0 or epoch == engine.state.max_epochs

        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=due), self)

    def __call__(self, engine: Any) -> None:
        dataset = getattr(self.evaluator.data_loader, "dataset", None)
        if dataset is not None and not len(dataset):
            return
        set_rnd(dataset, self.seed)
        if self.augmentation is not None:
            self.augmentation.set_random_state(self.seed)
        self.evaluator.run(max(engine.state.epoch, 1))
