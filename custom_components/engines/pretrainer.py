"""Self-supervised pre-training on MONAI's trainer."""

from __future__ import annotations

from typing import Any

from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents

from custom_components.losses import HybridLoss

from .batches import prepare_views


class Pretrainer(SupervisedTrainer):
    """MONAI's `SupervisedTrainer` on view pairs; its output also has the terms of the loss, for the handlers to log.

    Takes the arguments of `SupervisedTrainer`, with a `HybridLoss` as `loss_function`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("prepare_batch", prepare_views)
        kwargs.setdefault("decollate", False)
        super().__init__(*args, **kwargs)
        self.loss_function: HybridLoss

        @self.on(IterationEvents.LOSS_COMPLETED)
        def _add_terms(engine: Pretrainer) -> None:
            engine.state.output.update(engine.loss_function.terms)
