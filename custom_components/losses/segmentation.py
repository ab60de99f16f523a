"""Segmentation loss for scans in which not every class is annotated."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom_components.errors import InputError


class PartialLabelLoss(nn.Module):
    """Per-class sigmoid, binary cross-entropy plus soft Dice, over the annotated classes of each scan only.

    A class that is not annotated in a scan is present but undrawn there: it is neither a positive nor background, so
    that scan adds nothing to that class, in value or gradient. Cross-entropy is the mean over annotated (scan, class)
    maps; Dice is computed a class over all scans of the batch in which it is annotated, which keeps a gradient for a
    class that a single crop happens to miss.

    Args:
        smooth: added to Dice's numerator and denominator, in voxels.
        dice_weight: weight of the Dice term; cross-entropy has weight 1.
        positive_weight: how many times as much a voxel of a class counts in its cross-entropy as one outside. Above 1,
            small classes may be found in fewer steps (docs/EXPERIMENTS.md).

    Raises:
        InputError: a `positive_weight` that is not above 0.

    Source: arXiv 2307.14725, section 3.3 (BCE + Dice); Milletari et al. 2016 (soft Dice).
    """

    def __init__(self, smooth: float = 1.0, dice_weight: float = 1.0, positive_weight: float = 1.0) -> None:
        super().__init__()
        if not positive_weight > 0:
            raise InputError(f"positive_weight must be above 0 but is {positive_weight}")
        self.smooth, self.dice_weight, self.positive_weight = smooth, dice_weight, positive_weight

    def forward(self, logits: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """A scalar; 0 with a gradient of 0 where nothing is annotated.

        Args:
            logits: `(N, K, H, W, D)`, channel k is class k + 1.
            target: "label" `(N, 1, H, W, D)`, 0 = background, 1..K = classes; "annotated" `(N, K)`, true where the
                class is annotated in that scan, absent where all are.

        Raises:
            ValueError: where the shapes do not belong together.
        """
        label, annotated = target["label"], target.get("annotated")
        count, classes = logits.shape[:2]
        if label.shape != (count, 1, *logits.shape[2:]):
            raise ValueError(f"label is {tuple(label.shape)} but should be {(count, 1, *logits.shape[2:])}")
        logits = logits.float() if logits.dtype != torch.float64 else logits
        if annotated is None:
            annotated = torch.ones(count, classes, device=logits.device)
        weight = annotated.to(logits).reshape(count, classes)
        values = torch.arange(1, classes + 1, device=label.device).reshape(1, -1, 1, 1, 1)
        truth = (label == values).to(logits)
        counts = logits.new_tensor(self.positive_weight)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none", pos_weight=counts)
        cross_entropy = cross_entropy.mean((2, 3, 4))
        cross_entropy = (cross_entropy * weight).sum() / weight.sum().clamp(min=1)
        probability = logits.sigmoid()
        overlap = ((probability * truth).sum((2, 3, 4)) * weight).sum(0)
        volume = ((probability.sum((2, 3, 4)) + truth.sum((2, 3, 4))) * weight).sum(0)
        dice = 1 - (2 * overlap + self.smooth) / (volume + self.smooth)
        present = (weight.sum(0) > 0).to(logits)
        return cross_entropy + self.dice_weight * (dice * present).sum() / present.sum().clamp(min=1)
