"""Voxel-wise contrastive loss, exact, in memory that grows linearly with the number of voxels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from custom_components.errors import InputError


class _StreamedInfoNCE(torch.autograd.Function):
    """Sum of the symmetric InfoNCE over the anchors of G groups, `z (G, 2M, E)`; rows i and i + M are positives.

    `absent (G, 2M)` marks rows of padding, in both halves alike; None where there are none. Rows whose `places (G, 2M,
    P)` are less than `apart` from each other are no negatives of each other; None where all are. The (2M, 2M)
    similarities of a group are never held: they are computed in tiles, all groups at once, forwards for the log-sum-exp
    and again backwards for the soft-max. They are symmetric, so only tiles on and above the diagonal are, and each
    serves its rows and its columns.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        absent: Tensor | None,
        places: Tensor | None,
        apart: float,
        temperature: float,
        tile: int,
    ) -> Tensor:
        log_sums = z.new_full(z.shape[:2], float("-inf"))
        for rows, columns in _tiles(z.shape[1], tile):
            similarity = _similarity(z, absent, places, apart, rows, columns, temperature)
            log_sums[:, rows] = torch.logaddexp(log_sums[:, rows], similarity.logsumexp(2))
            if rows != columns:
                log_sums[:, columns] = torch.logaddexp(log_sums[:, columns], similarity.logsumexp(1))
        losses = log_sums - (z * _partners(z)).sum(2) / temperature
        if absent is not None:
            losses.masked_fill_(absent, 0)
            log_sums.masked_fill_(absent, float("inf"))  # a soft-max of 0
        ctx.save_for_backward(z, log_sums, absent, places)
        ctx.apart, ctx.temperature, ctx.tile = apart, temperature, tile
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # type: ignore[override]
        z, log_sums, absent, places = ctx.saved_tensors
        total = -2 * _partners(z)
        for rows, columns in _tiles(z.shape[1], ctx.tile):
            similarity = _similarity(z, absent, places, ctx.apart, rows, columns, ctx.temperature)
            # the soft-max of the rows' anchors; off the diagonal also that of the columns', which sees the same tile
            weights = (similarity - log_sums[:, rows, None]).exp_()
            if rows != columns:
                weights += similarity.sub_(log_sums[:, None, columns]).exp_()
            total[:, rows].baddbmm_(weights, z[:, columns])
            total[:, columns].baddbmm_(weights.mT, z[:, rows])
        return total * (grad / ctx.temperature), None, None, None, None, None


def _tiles(length: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles on and above the diagonal."""
    for start in range(0, length, tile):
        for other in range(start, length, tile):
            yield slice(start, start + tile), slice(other, other + tile)


def _similarity(
    z: Tensor,
    absent: Tensor | None,
    places: Tensor | None,
    apart: float,
    rows: slice,
    columns: slice,
    temperature: float,
) -> Tensor:
    """A tile of similarities `(G, rows, columns)`, minus infinity where a row meets itself, padding, or a near row that
    is not its positive."""
    similarity = torch.bmm(z[:, rows], z[:, columns].mT).div_(temperature)
    if places is not None:
        near = _squared_distance(places[:, rows], places[:, columns]) < apart**2
        for half in (z.shape[1] // 2, -(z.shape[1] // 2)):  # to the positive, where it is in this tile
            near.diagonal(rows.start - columns.start + half, 1, 2).fill_(False)
        similarity.masked_fill_(near, float("-inf"))
    if rows == columns:
        similarity.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
    if absent is not None:
        similarity.masked_fill_(absent[:, rows, None] | absent[:, None, columns], float("-inf"))
    return similarity


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Of all rows of `a (G, R, C)` to all of `b (G, S, C)`; `torch.cdist` takes a block of threads a pair on a GPU."""
    distance = a.new_zeros(len(a), a.shape[1], b.shape[1])
    for one, other in zip(a.unbind(2), b.unbind(2)):
        distance += (one[:, :, None] - other[:, None, :]).square_()
    return distance


def _partners(z: Tensor) -> Tensor:
    """The positive of each row of `z (G, 2M, E)`."""
    return z.roll(z.shape[1] // 2, 1)


class InfoNCE(nn.Module):
    """Symmetric InfoNCE over voxel pairs.

    Positives are the embeddings of the same voxel in the two views; negatives are all other voxels of both views, of
    the same scan by default. Pairs of crops of one scan share their negatives, as in the reference, where a batch is
    one scan: no negative is then the same anatomy in another patient.

    Scans are computed together, as batched matrix products; memory beyond the embeddings' own grows with `chunk`
    squared and not with the number of voxels. A batch of scans with very different numbers of voxels takes the time of
    as many scans of the largest number.

    Args:
        temperature: divides the cosine similarities.
        negatives: "scan" (default) or "batch" (all scans of the batch).
        exclude_within: voxels of the same scan less than so many mm from the anchor are not its negatives; 0 (default)
            keeps all.
        spacing: mm a voxel along each axis, for `exclude_within`.
        chunk: side of the tiles of the similarity matrix that are held at a time, shared by the scans; default 1,024 on
            a CPU, whose cache they fit, and 4,096 elsewhere.

    Raises:
        InputError: where `negatives` is neither, or `exclude_within` is negative.

    Source: arXiv 2401.06473, section 2.3; arXiv 2307.14725, equation 1.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        negatives: str = "scan",
        chunk: int | None = None,
        exclude_within: float = 0.0,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if negatives not in ("scan", "batch"):
            raise InputError(f"InfoNCE: negatives must be 'scan' or 'batch', but is {negatives!r}")
        if exclude_within < 0:
            raise InputError(f"InfoNCE: exclude_within must be at least 0 mm, but is {exclude_within}")
        self.temperature, self.negatives, self.chunk = temperature, negatives, chunk
        self.exclude_within, self.spacing = exclude_within, tuple(spacing)

    def forward(
        self,
        embeddings_1: Tensor,
        embeddings_2: Tensor,
        valid: Tensor | None = None,
        scan: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The mean loss over all anchors.

        Args:
            embeddings_1, embeddings_2: `(N, V, E)`, of length 1, of N pairs of crops.
            valid: `(N, V)` bool, False where a row is padding; None where none is.
            scan: `(N,)` the scan of each pair; None where every pair is of another scan.
            positions: `(N, V, 3)` of the voxels in their scan, in voxels; needed for `exclude_within` only.

        Returns:
            A scalar, float32 or wider whatever the autocast; 0 (with a gradient of 0) where there is no voxel at all.

        Raises:
            ValueError: `exclude_within` without positions.
        """
        count, voxels, _ = embeddings_1.shape
        if valid is None:
            valid = torch.ones(count, voxels, dtype=torch.bool, device=embeddings_1.device)
        if scan is None:
            scan = torch.arange(count, device=embeddings_1.device)
        places = self._places(positions, scan) if self.exclude_within else None
        if self.negatives == "batch":
            scan = torch.zeros_like(scan)
        if embeddings_1.dtype != torch.float64:
            embeddings_1, embeddings_2 = embeddings_1.float(), embeddings_2.float()
        groups = [valid & (scan == group)[:, None] for group in scan.unique()]
        first, second = (pad_sequence([e[group] for group in groups], True) for e in (embeddings_1, embeddings_2))
        if not first.numel():
            return embeddings_1.sum() * 0
        counts = torch.stack([group.sum() for group in groups])
        absent = torch.arange(first.shape[1], device=counts.device) >= counts[:, None]
        chunk = self.chunk or (1024 if first.device.type == "cpu" else 4096)
        if places is not None:
            places = pad_sequence([places[group] for group in groups], True).repeat(1, 2, 1)
        with torch.autocast(first.device.type, enabled=False):
            total = _StreamedInfoNCE.apply(
                torch.cat([first, second], 1),
                torch.cat([absent, absent], 1) if absent.any() else None,
                places,
                self.exclude_within,
                self.temperature,
                max(1, round(chunk / math.sqrt(len(groups)))),
            )
        return total / (2 * counts.sum())

    def _places(self, positions: Tensor | None, scan: Tensor) -> Tensor:
        """Where the voxels lie, `(N, V, 4)`: in mm, and in a fourth dimension in which scans are far apart."""
        if positions is None:
            raise ValueError("InfoNCE: exclude_within needs the positions of the voxels in their scan")
        places = positions * positions.new_tensor(self.spacing, dtype=torch.float32)
        number = scan.unique(return_inverse=True)[1] * (2 * self.exclude_within)
        return torch.cat([places, number[:, None, None].expand(*places.shape[:2], 1).to(places)], 2)
