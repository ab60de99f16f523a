"""Crops around a voxel of a class, without a pass over the whole label for each of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import RandCropByLabelClassesd, Transform
from torch import Tensor


class ClassIndicesd(Transform):
    """Add `class_indices` `(num_classes + 1, V)`: flat indices of voxels of the background and of each class.

    All voxels of a class in their order, or `max_indices` of them drawn without replacement, the same ones for the same
    label. A class with fewer than V is filled up with -1. MONAI's `ClassesToIndices` gives a list, which
    `MemoryMappedDataset` does not store, and takes every n-th voxel, which may all be of one plane.

    Args:
        num_classes: K, without the background.
        max_indices: upper bound of V.
        label_key: the label, `(1, H, W, D)`.
    """

    def __init__(self, num_classes: int, max_indices: int = 10_000, label_key: str = "label") -> None:
        self.num_classes, self.max_indices, self.label_key = num_classes, max_indices, label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        label = np.asarray(data[self.label_key]).ravel()
        rows = [self._indices(label == value) for value in range(self.num_classes + 1)]
        table = np.full((len(rows), max(len(row) for row in rows)), -1, dtype=np.int64)
        for filled, row in zip(table, rows):
            filled[: len(row)] = row
        return {**data, "class_indices": torch.from_numpy(table)}

    def _indices(self, mask: np.ndarray) -> np.ndarray:
        indices = np.flatnonzero(mask)
        if len(indices) <= self.max_indices:
            return indices
        return np.random.default_rng(0).choice(indices, self.max_indices, replace=False, shuffle=False)


class RandCropByClassIndicesd(RandCropByLabelClassesd):
    """MONAI's `RandCropByLabelClassesd` with the table of `ClassIndicesd` for its `indices_key`.

    With `allow_smaller` a scan need not be padded before, which would move the voxels that the table names.
    """

    def randomize(self, label: Tensor, indices: Sequence[Tensor] | None = None, image: Tensor | None = None) -> None:  # type: ignore[override]
        super().randomize(label, None if indices is None else [row[row >= 0] for row in indices], image)
