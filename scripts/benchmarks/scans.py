"""Scans to measure with: phantoms, enlarged by repeating voxels, which takes seconds where computing takes minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from custom_components.data import make_phantom
from custom_components.data.phantom_dataset import FIELD_OF_VIEW_MM


def phantom_volume(shape: Sequence[int], times: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A CT phantom of `shape`, int16 HU, each voxel of which was computed for `times`**3, and its affine."""
    coarse = [-(-side // times) for side in shape]
    spacing = [extent / side for extent, side in zip(FIELD_OF_VIEW_MM, coarse, strict=True)]
    image, _, affine = make_phantom("CT", 0, coarse, spacing)
    volume = np.rint(image).astype(np.int16)
    for axis in range(3):
        volume = volume.repeat(times, axis)
    affine = affine @ np.diag([1 / times] * 3 + [1])
    return np.ascontiguousarray(volume[tuple(slice(side) for side in shape)]), affine


def write_scan(path: Path, shape: Sequence[int], times: int = 1) -> Path:
    """A phantom as a file."""
    volume, affine = phantom_volume(shape, times)
    nib.save(nib.Nifti1Image(volume, affine), path)
    return path


def spacing_of(path: Path) -> list[float]:
    """mm along each axis."""
    return [float(side) for side in nib.load(path).header.get_zooms()]  # type: ignore[attr-defined]
