"""Turned and scaled views: where each of their voxels lies in the scan, and the voxels that two of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation


class Frame(NamedTuple):
    """A grid in a scan: its voxel v lies at `centre + matrix @ (v - (size - 1) / 2)`, in the scan's voxels."""

    size: tuple[int, ...]
    centre: np.ndarray
    matrix: np.ndarray

    def in_scan(self, voxels: np.ndarray) -> np.ndarray:
        """Positions in the scan, float (N, 3), of this grid's `voxels` (N, 3)."""
        return (voxels - (np.array(self.size) - 1) / 2) @ self.matrix.T + self.centre

    def in_grid(self, positions: np.ndarray) -> np.ndarray:
        """Voxels of this grid, float (N, 3), at `positions` (N, 3) in the scan."""
        return (positions - self.centre) @ np.linalg.inv(self.matrix).T + (np.array(self.size) - 1) / 2

    def bounds(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First voxel and size, at least 2 an axis, of the block of the scan that the grid is interpolated from."""
        reach = np.abs(self.matrix) @ ((np.array(self.size) - 1) / 2)
        low = np.floor(self.centre - reach).astype(int)
        high = np.maximum(np.ceil(self.centre + reach).astype(int), low + 1)
        return tuple(low.tolist()), tuple((high - low + 1).tolist())


def random_matrix(
    rotate_range: float, scale_range: float, spacing: Sequence[float], random: np.random.RandomState
) -> np.ndarray:
    """A `Frame`'s matrix: angles about the three axes within +-`rotate_range` radians, after a factor for each axis of
    the grid within 1 +- `scale_range`; both act in mm, on a scan of `spacing` mm."""
    rotation = Rotation.from_euler("XYZ", random.uniform(-rotate_range, rotate_range, 3)).as_matrix()
    factors = random.uniform(1 - scale_range, 1 + scale_range, 3)
    to_mm = np.diag(np.asarray(spacing, dtype=float))
    return np.linalg.inv(to_mm) @ rotation @ np.diag(factors) @ to_mm


def interpolate(block: torch.Tensor, low: Sequence[int], frame: Frame) -> torch.Tensor:
    """The values, float (C, *size), that `frame` finds by trilinear interpolation in `block` (C, h, w, d), which starts
    at the voxel `low` of the scan and holds `frame.bounds()`."""
    half, span = (np.array(frame.size) - 1) / 2, np.array(block.shape[1:]) - 1
    # affine_grid's coordinates run from -1 to 1 over a grid and over the block, last axis first
    theta = np.zeros((3, 4))
    theta[:, :3] = (2 * frame.matrix * half / span[:, None])[::-1, ::-1]
    theta[:, 3] = (2 * (frame.centre - np.array(low)) / span - 1)[::-1]
    grid = F.affine_grid(torch.from_numpy(theta)[None].float(), [1, 1, *frame.size], align_corners=True)
    return F.grid_sample(block[None].float(), grid, padding_mode="border", align_corners=True)[0]


def shared_voxels(
    body: np.ndarray, frame_1: Frame, frame_2: Frame, max_voxels: int, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to `max_voxels` voxels of frame 1 in the body (H, W, D), and the nearest voxel to each in frame 2.

    Both lie inside their grids, no voxel of either comes twice, and the body is looked up at the scan's nearest voxel.
    The second one is exact to half a voxel an axis.

    Returns:
        their positions in frame 1 and in frame 2, int64 (max_voxels, 3), with rows of -1 beyond the available number.
    """
    inside = np.stack(np.unravel_index(np.arange(np.prod(frame_1.size)), frame_1.size), 1)
    positions = frame_1.in_scan(inside)
    others = np.rint(frame_2.in_grid(positions)).astype(np.int64)
    nearest = np.rint(positions).astype(np.int64)
    valid = ((others >= 0) & (others < frame_2.size)).all(1) & ((nearest >= 0) & (nearest < body.shape)).all(1)
    valid[valid] = body[tuple(nearest[valid].T)] != 0
    candidates = np.flatnonzero(valid)
    chosen = generator.choice(candidates, min(len(candidates), max_voxels), replace=False, shuffle=False)
    if len(chosen):
        chosen = chosen[np.unique(np.ravel_multi_index(tuple(others[chosen].T), frame_2.size), return_index=True)[1]]
    voxels = np.full((2, max_voxels, 3), -1, dtype=np.int64)
    voxels[0, : len(chosen)], voxels[1, : len(chosen)] = inside[chosen], others[chosen]
    return torch.from_numpy(voxels[0]), torch.from_numpy(voxels[1])
