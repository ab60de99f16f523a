"""Backbone and head as one segmentation network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from custom_components.errors import InputError

from .fpn import FPN3d
from .heads import LinearHead, NonLinearHead

HEADS = {"linear": LinearHead, "nonlinear": NonLinearHead}


class SegmentationNetwork(nn.Module):
    """`FPN3d` with a head that gives one logit a class and voxel (no background channel: sigmoid, not softmax).

    Args:
        num_classes: foreground classes.
        in_channels, base_channels, num_scales: as in `FPN3d`.
        head: "linear" or "nonlinear".
        adapt_classes: whether a state dict that is loaded decides the number of classes, as where an annotator trained
            classes of his own: the head is then made anew for that number.
        checkpointing: as in `FPN3d.set_checkpointing`.

    Input `(N, in_channels, H, W, D)`, output logits `(N, num_classes, H, W, D)`.

    Raises:
        InputError: unknown head.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        base_channels: int = 32,
        num_scales: int = 5,
        head: str = "linear",
        adapt_classes: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise InputError(f"SegmentationNetwork: head must be one of {sorted(HEADS)}, but is {head!r}")
        self.backbone = FPN3d(in_channels, base_channels, num_scales)
        self.backbone.set_checkpointing(checkpointing)
        self.head = HEADS[head](base_channels, num_scales, num_classes)
        self.backbone_frozen = False
        self.adapt_classes = adapt_classes
        if adapt_classes:
            self.register_load_state_dict_pre_hook(_take_num_classes)

    @property
    def num_classes(self) -> int:
        return int(self.head.get_submodule(self._last_layer).out_channels)  # type: ignore[arg-type]

    @property
    def _last_layer(self) -> str:
        """The head's one layer that has a bias for every class."""
        return "layers.0" if isinstance(self.head, LinearHead) else "final_block"

    def set_num_classes(self, num_classes: int) -> None:
        """Make the head anew where it has another number of classes."""
        if num_classes != self.num_classes:
            parameter = next(self.head.parameters())
            head = type(self.head)(self.backbone.base_channels, self.backbone.num_scales, num_classes)
            self.head = head.to(parameter.device, parameter.dtype).train(self.training)

    def take_num_classes(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Give the head the number of classes that a state dict has; its values are still to be loaded."""
        found = state.get(f"{prefix}head.{self._last_layer}.bias")
        if found is not None:
            self.set_num_classes(len(found))

    def freeze_backbone(self, frozen: bool = True) -> None:
        """Train the head only (True) or everything (False).

        A frozen backbone neither receives gradients nor updates its batch statistics: it is exactly the pretrained one.
        """
        self.backbone_frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> SegmentationNetwork:
        super().train(mode)
        if self.backbone_frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def _take_num_classes(network: SegmentationNetwork, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    network.take_num_classes(state, prefix)
