"""From the network's logits to a label volume on the scan's own grid."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from torch import Tensor

OF_THE_FILE = ("filename_or_obj", "qform_code", "sform_code")  # what its writer asks for
SLAB_VOXELS = 1 << 18  # larger ones take more memory and no less time


def logits_to_label(logits: Tensor, slab_voxels: int = SLAB_VOXELS) -> Tensor:
    """Label `(1, H, W, D)` uint8 of logits `(K, H, W, D)`: k + 1 of the highest logit, 0 where none is positive.

    It is made slab by slab along the first axis, `slab_voxels` at a time: an index takes eight bytes.
    """
    label = logits.new_empty((1, *logits.shape[1:]), dtype=torch.uint8)
    for start, stop in _slabs(logits.shape[1:], slab_voxels):
        highest, index = logits[:, start:stop].max(0)
        label[0, start:stop] = torch.where(highest > 0, index + 1, 0)
    return label


class LogitsToLabel(Transform):
    """Resample logits to another grid and keep the label only.

    The logits are interpolated linearly at the voxel centres of the target grid, slab by slab along its first axis, so
    that the probabilities of all classes are never held at full size; logits in half precision are interpolated in
    single precision, of which no more is made than a slab needs. Outside the logits' grid the nearest value holds.

    Args:
        slab_voxels: voxels of the target grid handled at a time.
    """

    def __init__(self, slab_voxels: int = SLAB_VOXELS) -> None:
        self.slab_voxels = slab_voxels

    def __call__(  # type: ignore[override]
        self, logits: Tensor, affine: Any, target_affine: Any, target_shape: Sequence[int]
    ) -> MetaTensor:
        """The label on the target grid.

        Args:
            logits: `(K, H, W, D)`, one a class, no background.
            affine, target_affine: 4 x 4, voxel to mm, of the logits' and of the target grid.
            target_shape: three sizes.

        Returns:
            `(1, *target_shape)` uint8 with `target_affine`.
        """
        source = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
        affine, target_affine = np.asarray(affine, dtype=float), np.asarray(target_affine, dtype=float)
        shape = tuple(int(size) for size in target_shape)
        to_source = np.linalg.solve(affine, target_affine)
        if tuple(source.shape[1:]) == shape and np.allclose(to_source, np.eye(4), atol=1e-5):
            return MetaTensor(logits_to_label(source, self.slab_voxels), affine=torch.as_tensor(target_affine))
        label = torch.empty((1, *shape), dtype=torch.uint8)
        for start, stop in _slabs(shape, self.slab_voxels):
            box = _source_box(to_source, source.shape[1:], ((start, stop), *((0, size) for size in shape[1:])))
            part = source[(slice(None), *box)].float()
            shifted = to_source.copy()
            shifted[:3, 3] -= [side.start for side in box]
            grid = _sampling_grid(shifted, part.shape[1:], (start, stop), shape[1:]).to(part)
            sampled = F.grid_sample(part[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)
            label[:, start:stop] = logits_to_label(sampled[0], self.slab_voxels).cpu()
        return MetaTensor(label, affine=torch.as_tensor(target_affine))


def _slabs(shape: Sequence[int], slab_voxels: int) -> Iterator[tuple[int, int]]:
    """First and last row, exclusive, of slabs of at most `slab_voxels`, but of a row at least."""
    thickness = max(1, slab_voxels // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], thickness):
        yield start, min(start + thickness, shape[0])


def _source_box(
    to_source: np.ndarray, source_shape: Sequence[int], ranges: Sequence[tuple[int, int]]
) -> tuple[slice, ...]:
    """The voxels of the source between which positions of a box of the target lie; at least one along each axis."""
    corners = np.array(list(itertools.product(*((first, last - 1) for first, last in ranges))))
    positions = corners @ to_source[:3, :3].T + to_source[:3, 3]
    firsts, lasts = np.floor(positions.min(0)), np.ceil(positions.max(0))
    return tuple(
        slice(int(np.clip(first, 0, size - 1)), int(np.clip(last, 0, size - 1)) + 1)
        for first, last, size in zip(firsts, lasts, source_shape)
    )


def _sampling_grid(
    to_source: np.ndarray, source_shape: Sequence[int], rows: tuple[int, int], plane: Sequence[int]
) -> Tensor:
    """Positions `(rows, W, D, 3)` in the source, normalised to [-1, 1] and in the order (z, y, x) of `grid_sample`."""
    matrix = torch.as_tensor(to_source)
    axes = [torch.arange(*rows).double(), torch.arange(plane[0]).double(), torch.arange(plane[1]).double()]
    normalised = []
    for axis, size in reversed(list(enumerate(source_shape))):
        a, b, c = (matrix[axis, i] * axes[i] for i in range(3))
        position = a[:, None, None] + b[:, None] + c + matrix[axis, 3]
        # a grid of a single voxel has no extent: every position reads that voxel
        normalised.append((2 * position / (size - 1) - 1 if size > 1 else torch.zeros_like(position)).float())
    return torch.stack(normalised, -1)


class LogitsToLabeld(MapTransform):
    """Dictionary form of `LogitsToLabel`: logits on the preprocessed image's grid come back as labels on the grid that
    the image's file has (`original_affine` and `spatial_shape` of its metadata), named after that file.

    Args:
        keys: logits.
        image_key: the preprocessed image, a `MetaTensor`.
        own_grid: False leaves the label on the network's grid, for quick validation during training.
    """

    def __init__(self, keys: KeysCollection, image_key: str = "image", own_grid: bool = True) -> None:
        super().__init__(keys)
        self.image_key, self.own_grid = image_key, own_grid
        self.to_label = LogitsToLabel()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            if not self.own_grid:
                result[key] = logits_to_label(torch.as_tensor(result[key]))
                continue
            image = result[self.image_key]
            result[key] = self.to_label(
                result[key], image.affine, image.meta["original_affine"], image.meta["spatial_shape"]
            )
            result[key].meta["filename_or_obj"] = ""
            result[key].meta.update({entry: image.meta[entry] for entry in OF_THE_FILE if entry in image.meta})
        return result
