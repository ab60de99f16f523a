"""Writing NIfTI files on exactly the grid that they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from monai.data import NibabelWriter


class ExactNiftiWriter(NibabelWriter):
    """MONAI's `NibabelWriter` without its resampling, for `SaveImage(writer=...)`: voxels and affine stay as they are.

    MONAI 1.6.1 sends even `resample=False` through a resampler that mistakes `(H, W, D)` for channel-first 2D, and so
    fails on affines with permuted axes (a sagittal acquisition, for instance). The sform and, without any shear, the
    qform are written, both with code 1 (scanner), in mm.
    """

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        self.affine = np.asarray((meta_dict or {}).get("affine", np.eye(4)), dtype=float)

    @classmethod
    def create_backend_obj(cls, data_array: Any, affine: Any = None, dtype: Any = None, **kwargs: Any) -> Any:
        image = NibabelWriter.create_backend_obj(data_array, affine, dtype, **kwargs)
        image.header.set_xyzt_units("mm")
        image.set_sform(image.affine, code=1)
        image.set_qform(image.affine, code=1, strip_shears=True)
        return image
