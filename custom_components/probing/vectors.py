"""Feature vectors of a frozen backbone at voxels sampled from annotated scans."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from custom_components.networks import fast_network
from custom_components.networks.fpn import FPN3d, features_at

NEAR_VOXELS = 3


@dataclass
class VoxelVectors:
    """Feature vectors of V voxels with their labels.

    Attributes:
        vectors: `(V, C)`, the scales' features side by side, fine to coarse.
        labels: `(V,)` label values, 0 the background.
        weights: `(V,)`, how many voxels of the scan each one stands for.
        annotated: `(V, K)` bool, the classes that are drawn in the voxel's scan.
    """

    vectors: Tensor
    labels: Tensor
    weights: Tensor
    annotated: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> VoxelVectors:
        return VoxelVectors(*(value.to(device) for value in vars(self).values()))

    @staticmethod
    def joined(parts: Sequence[VoxelVectors]) -> VoxelVectors:
        """The voxels of several scans."""
        names = ("vectors", "labels", "weights", "annotated")
        return VoxelVectors(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def sample_voxels(label: Tensor, per_class: int, background: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Voxels of every class, and of the background near to and far from what is drawn.

    The background within 3 voxels of a drawn class decides where its border is, and would hardly be met among all the
    rest, so that it is sampled apart.

    Args:
        label: `(H, W, D)` label values.
        per_class: voxels of each class, at most.
        background: voxels of each of the two kinds of background, at most.
        seed: decides which ones.

    Returns:
        Positions `(V, 3)`, and weights `(V,)`: how many voxels of its kind each one stands for.
    """
    drawn = (label > 0).float()[None, None]
    near = F.max_pool3d(drawn, 2 * NEAR_VOXELS + 1, 1, NEAR_VOXELS)[0, 0] > 0
    # kinds: 1.. the classes, 0 the far background, -1 the near one
    kind = torch.where((label == 0) & near, -1, label.long()).flatten()
    generator = torch.Generator().manual_seed(seed)
    positions, weights = [], []
    for value in kind.unique().tolist():
        found = (kind == value).nonzero()[:, 0]
        count = min(len(found), per_class if value > 0 else background)
        positions.append(found[torch.randperm(len(found), generator=generator)[:count]])
        weights.append(torch.full((count,), len(found) / count))
    index = np.unravel_index(torch.cat(positions).numpy(), tuple(label.shape))
    return torch.from_numpy(np.stack(index, 1)).long(), torch.cat(weights)


@torch.no_grad()
def vectors_at(
    backbone: FPN3d,
    image: Tensor,
    positions: Tensor,
    tile: Sequence[int] = (128, 128, 128),
    margin: int = 16,
    cpu_bfloat16: bool = False,
) -> Tensor:
    """The backbone's feature vectors `(V, C)` at voxels of a scan of any size.

    A scan that is larger than a tile goes through tile by tile; each has `margin` more voxels on every side than those
    that are read from it, so that they see what is around them.

    Args:
        backbone: in evaluation mode.
        image: `(channels, H, W, D)`.
        positions: `(V, 3)` voxels.
        tile: voxels that are read from a tile, at most.
        margin: voxels around them, a multiple of the coarsest scale's step.
        cpu_bfloat16: on CPUs the backbone computes in bfloat16; see `fast_network`.
    """
    parameter = next(backbone.parameters())
    fast = fast_network(backbone, cpu_bfloat16=cpu_bfloat16)
    stride = 2 ** (backbone.num_scales - 1)
    vectors = torch.empty((len(positions), sum(backbone.channels)))
    for core, outer in _tiles(image.shape[1:], tile, math.ceil(margin / stride) * stride, stride):
        low, high = torch.tensor([c.start for c in core]), torch.tensor([c.stop for c in core])
        inside = ((positions >= low) & (positions < high)).all(1).nonzero()[:, 0]
        if len(inside):
            pyramid = fast(image[(slice(None), *outer)][None].to(parameter))
            local = (positions[inside] - torch.tensor([o.start for o in outer])).to(parameter.device)
            vectors[inside] = torch.cat(features_at(pyramid, local[None]), -1)[0].float().cpu()
    return vectors


def _tiles(
    shape: Sequence[int], tile: Sequence[int], margin: int, stride: int
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Cores that cover the volume and the same with their margins; all start at a multiple of the stride."""
    axes = []
    for size, wanted in zip(shape, tile):
        step = max(wanted // stride, 1) * stride
        # a rest that is smaller than the margin is read from the tile before it
        starts = range(0, max(size - margin, 1), step)
        stops = [*starts[1:], size]
        axes.append(
            [
                (slice(start, stop), slice(max(start - margin, 0), min(stop + margin, size)))
                for start, stop in zip(starts, stops)
            ]
        )
    for parts in itertools.product(*axes):
        yield tuple(core for core, _ in parts), tuple(outer for _, outer in parts)
