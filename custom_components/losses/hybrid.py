"""The hybrid pre-training loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from .contrastive import InfoNCE


class HybridLoss(nn.Module):
    """InfoNCE plus the weighted mean squared error of restoring both views.

    After a call, `terms` holds the unweighted terms, detached, under "contrastive" and "restoration".

    Args:
        contrastive: the voxel-wise contrastive loss.
        restoration_weight: 10 in the paper; 0 leaves restoration out (vox2vec).

    Source: arXiv 2401.06473, equation 1.
    """

    def __init__(self, contrastive: InfoNCE | None = None, restoration_weight: float = 10.0) -> None:
        super().__init__()
        self.contrastive = contrastive or InfoNCE()
        self.restoration_weight = restoration_weight
        self.terms: dict[str, Tensor] = {}

    def forward(self, prediction: tuple[Tensor, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        """The total loss, a scalar.

        Args:
            prediction: embeddings `(2N, V, E)` and restored images `(2N, C, H, W, D)` of N pairs, all first views
                before all second views, as `DenseSSLNetwork` returns them.
            target: "original" `(2N, C, H, W, D)`, the views before augmentation; "voxels" `(2N, V, 3)`, where rows of
                -1 are padding; "scan" `(N,)`, the scan that each pair is from; and, where the contrastive loss leaves
                out near negatives, "positions" `(N, V, 3)`, the voxels' positions in their scan.
        """
        embeddings, restored = prediction
        first, second = embeddings.chunk(2)
        valid = target["voxels"].chunk(2)[0][..., 0] >= 0
        contrastive = self.contrastive(
            first, second, valid=valid, scan=target["scan"], positions=target.get("positions")
        )
        restoration = F.mse_loss(restored.float(), target["original"].float())
        self.terms = {"contrastive": contrastive.detach(), "restoration": restoration.detach()}
        return contrastive + self.restoration_weight * restoration
