"""Writing NIfTI files on exactly the grid that they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelWriter

from .headers import POSITION_CODES


class ExactNiftiWriter(NibabelWriter):
    """MONAI's `NibabelWriter` without its resampling, for `SaveImage(writer=...)`: voxels and affine stay as they are.

    MONAI 1.6.1 sends even `resample=False` through a resampler that mistakes `(H, W, D)` for channel-first 2D, and so
    fails on affines with permuted axes (a sagittal acquisition, for instance). The sform and, without any shear, the
    qform are written, both with code 1 (scanner), in mm. Where the scan's file has neither (both codes are 0), its
    place is a guess that every program makes in its own way: the result then has neither too, and lies where the scan
    does.
    """

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        meta = meta_dict or {}
        self.affine = np.asarray(meta.get("affine", np.eye(4)), dtype=float)
        self.placed = any(int(meta.get(code, 1)) for code in POSITION_CODES)

    def write(self, filename: Any, verbose: bool = False, **options: Any) -> None:
        super().write(filename, verbose, **options)
        image: Any = self.data_obj
        if not self.placed and np.allclose(image.header.get_base_affine(), self.affine, atol=1e-3):
            image.set_sform(None, code=0)
            image.set_qform(None, code=0)
            nib.save(image, filename)

    @classmethod
    def create_backend_obj(cls, data_array: Any, affine: Any = None, dtype: Any = None, **kwargs: Any) -> Any:
        image = NibabelWriter.create_backend_obj(data_array, affine, dtype, **kwargs)
        image.header.set_xyzt_units("mm")
        image.set_sform(image.affine, code=1)
        image.set_qform(image.affine, code=1, strip_shears=True)
        return image
