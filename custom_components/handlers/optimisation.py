"""Handlers that steer the optimiser."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import Events

from custom_components.networks import SegmentationNetwork

logger = logging.getLogger(__name__)


class GradientClipping:
    """Clip the total gradient norm before every optimiser step.

    It hooks the optimiser's step, because MONAI's trainer has no event between un-scaling (mixed precision) and the
    step. In bfloat16, which has the range of single precision, it takes away the trainer's scaling: nothing would ever
    overflow there, so that the scale would grow until the norm of the scaled gradient does.

    Args:
        max_norm: upper bound of the gradient's L2 norm over all parameters.
    """

    def __init__(self, max_norm: float = 1.0) -> None:
        self.max_norm = max_norm

    def attach(self, engine: Any) -> None:
        # handlers are attached before the engine knows its optimiser
        engine.add_event_handler(Events.STARTED, self._start, engine)

    def _start(self, engine: Any) -> None:
        if getattr(engine, "scaler", None) is not None and engine.amp_kwargs.get("dtype") == torch.bfloat16:
            engine.scaler = torch.amp.GradScaler(enabled=False)
        engine.optimizer.register_step_pre_hook(self._clip)

    def _clip(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # mixed precision leaves the un-scaling of the gradient to a fused optimiser, which does it in its step
        scale = getattr(optimizer, "grad_scale", None)
        torch.nn.utils.clip_grad_norm_(parameters, self.max_norm * (1.0 if scale is None else float(scale)))


class FreezeBackbone:
    """Train the head alone for the first epochs, then everything.

    Args:
        network: the segmentation network (not its distributed wrapper).
        epochs: epochs with a frozen backbone; 0 trains everything from the start, None keeps it frozen throughout.

    Source: arXiv 2401.06473, section 3 (fine-tuning protocol).
    """

    def __init__(self, network: SegmentationNetwork, epochs: int | None = None) -> None:
        self.network, self.epochs = network, epochs

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Any) -> None:
        frozen = self.epochs is None or engine.state.epoch <= self.epochs
        if frozen != self.network.backbone_frozen:
            self.network.freeze_backbone(frozen)
            logger.info("epoch %d: backbone %s", engine.state.epoch, "frozen" if frozen else "trained")
