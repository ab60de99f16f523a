"""Voxel-wise contrastive loss, exact, in memory that grows linearly with the number of voxels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _StreamedInfoNCE(torch.autograd.Function):
    """Symmetric InfoNCE of rows `z (2M, E)`, where rows i and i + M are positives; the mean over all 2M anchors.

    The (2M, 2M) similarity matrix is never held: it is computed in slabs of rows, forwards for the log-sum-exp and
    again backwards for the soft-max, so that memory grows with 2M * chunk.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, chunk: int) -> Tensor:
        log_sums = torch.cat([_similarity(z, start, chunk, temperature).logsumexp(1) for start in _starts(z, chunk)])
        positives = (z * z.roll(len(z) // 2, 0)).sum(1) / temperature
        ctx.save_for_backward(z, log_sums)
        ctx.temperature, ctx.chunk = temperature, chunk
        return (log_sums - positives).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        z, log_sums = ctx.saved_tensors
        total = -2 * z.roll(len(z) // 2, 0)
        for start in _starts(z, ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            soft_max = _similarity(z, start, ctx.chunk, ctx.temperature).sub_(log_sums[rows, None]).exp_()
            # the similarity is symmetric in z, so each slab adds to its own rows and, transposed, to all others
            total[rows] += soft_max @ z
            total.addmm_(soft_max.T, z[rows])
        return total * (grad / (len(z) * ctx.temperature)), None, None


def _starts(z: Tensor, chunk: int) -> range:
    return range(0, len(z), chunk)


def _similarity(z: Tensor, start: int, chunk: int, temperature: float) -> Tensor:
    rows = (z[start : start + chunk] @ z.T).div_(temperature)
    rows.diagonal(offset=start).fill_(float("-inf"))
    return rows


class InfoNCE(nn.Module):
    """Symmetric InfoNCE over voxel pairs.

    Positives are the embeddings of the same voxel in the two views; negatives are all other voxels of both views, of
    the same scan by default. Pairs of crops of one scan share their negatives, as in the reference, where a batch is
    one scan: no negative is then the same anatomy in another patient.

    Args:
        temperature: divides the cosine similarities.
        negatives: "scan" (default) or "batch" (all scans of the batch).
        chunk: anchors whose similarities are held at a time.

    Raises:
        ValueError: where `negatives` is neither.

    Source: arXiv 2401.06473, section 2.3; arXiv 2307.14725, equation 1.
    """

    def __init__(self, temperature: float = 0.1, negatives: str = "scan", chunk: int = 2048) -> None:
        super().__init__()
        if negatives not in ("scan", "batch"):
            raise ValueError(f"InfoNCE: negatives must be 'scan' or 'batch', but is {negatives!r}")
        self.temperature, self.negatives, self.chunk = temperature, negatives, chunk

    def forward(
        self, embeddings_1: Tensor, embeddings_2: Tensor, valid: Tensor | None = None, scan: Tensor | None = None
    ) -> Tensor:
        """The mean loss over all anchors.

        Args:
            embeddings_1, embeddings_2: `(N, V, E)`, of length 1, of N pairs of crops.
            valid: `(N, V)` bool, False where a row is padding; None where none is.
            scan: `(N,)` the scan of each pair; None where every pair is of another scan.

        Returns:
            A scalar, float32 or wider whatever the autocast; 0 (with a gradient of 0) where there is no voxel at all.
        """
        count, voxels, _ = embeddings_1.shape
        if valid is None:
            valid = torch.ones(count, voxels, dtype=torch.bool, device=embeddings_1.device)
        if self.negatives == "batch":
            scan = torch.zeros(count, dtype=torch.long, device=embeddings_1.device)
        elif scan is None:
            scan = torch.arange(count, device=embeddings_1.device)
        if embeddings_1.dtype != torch.float64:
            embeddings_1, embeddings_2 = embeddings_1.float(), embeddings_2.float()
        total, anchors = embeddings_1.sum() * 0, 0
        with torch.autocast(embeddings_1.device.type, enabled=False):
            for group in scan.unique():
                chosen = valid & (scan == group)[:, None]
                z = torch.cat([embeddings_1[chosen], embeddings_2[chosen]])
                if len(z):
                    total = total + _StreamedInfoNCE.apply(z, self.temperature, self.chunk) * len(z)
                    anchors += len(z)
        return total / max(anchors, 1)
