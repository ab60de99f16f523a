"""Resampling in a dictionary that may hold anything else."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform, Spacing


class ResampleSpacingd(MapTransform):
    """Dictionary form of MONAI's `Spacing`, for images alone.

    MONAI's own `Spacingd` (1.6) takes every entry whose name begins with `image_` for metadata and fails on MONAI
    Label's `image_path`.

    Args:
        keys: images `(C, H, W, D)`, `MetaTensor`.
        pixdim: spacing to resample to, mm.
        mode: interpolation, as in `Spacing`.
    """

    def __init__(self, keys: KeysCollection, pixdim: Sequence[float], mode: str = "bilinear") -> None:
        super().__init__(keys)
        self.spacing = Spacing(pixdim=pixdim, mode=mode)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.spacing(result[key])
        return result
