"""Backbone and head as one segmentation network."""

from __future__ import annotations

from torch import Tensor, nn

from .fpn import FPN3d
from .heads import LinearHead, NonLinearHead

HEADS = {"linear": LinearHead, "nonlinear": NonLinearHead}


class SegmentationNetwork(nn.Module):
    """`FPN3d` with a head that gives one logit a class and voxel (no background channel: sigmoid, not softmax).

    Args:
        num_classes: foreground classes.
        in_channels, base_channels, num_scales: as in `FPN3d`.
        head: "linear" or "nonlinear".

    Input `(N, in_channels, H, W, D)`, output logits `(N, num_classes, H, W, D)`.

    Raises:
        ValueError: unknown head.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        base_channels: int = 32,
        num_scales: int = 5,
        head: str = "linear",
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"SegmentationNetwork: head must be one of {sorted(HEADS)}, but is {head!r}")
        self.backbone = FPN3d(in_channels, base_channels, num_scales)
        self.head = HEADS[head](base_channels, num_scales, num_classes)
        self.backbone_frozen = False

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
