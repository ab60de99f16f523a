"""Loading scans of every format that inference takes, checked before their voxels are read."""

from __future__ import annotations

import itertools
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import ITKReader, MetaTensor, NibabelReader
from monai.data.image_reader import ImageReader
from monai.transforms import LoadImage, LoadImaged
from monai.utils import ensure_tuple

from .dicom import DicomSeriesReader, dicom_grid, is_dicom
from .headers import ITK_SUFFIXES, DataError, Grid, itk_grid, itk_image_io, nifti_grid, reason_of

# of a voxel's shortest edge; what programs round in a header is less, and a label moved by that is still right
AFFINE_TOLERANCE = 0.1


def distance_of_grids(first: Grid, second: Grid) -> tuple[float, float]:
    """How far two grids of the same shape lie apart at the farthest corner: in shortest edges of a voxel, and in mm."""
    (shape, affine), (_, other) = first, second
    corners = np.array([(*c, 1) for c in itertools.product(*((0, size - 1) for size in shape))])
    distance = float(np.linalg.norm(corners @ (affine - other).T, axis=1).max())
    return distance / float(np.linalg.norm(affine[:3, :3], axis=0).min()), distance


def scan_grid(path: str | os.PathLike) -> Grid:
    """Shape (H, W, D) and affine (4, 4), voxel to mm, RAS, of a scan, from headers only.

    Args:
        path: a NIfTI, NRRD or MetaImage file, or the folder of a DICOM series.

    Raises:
        DataError: one sentence that says why this is no scan that can be used.
    """
    path = str(path)
    if os.path.isdir(path):
        return dicom_grid(path)
    if not os.path.isfile(path):
        raise DataError(f"{path}: is listed but there is no such file; add it or remove it from the list")
    if path.lower().endswith(ITK_SUFFIXES):
        return itk_grid(path)
    if is_dicom(path):
        raise DataError(f"{path}: a scan was expected but this is one DICOM file; name the folder of its series")
    return nifti_grid(path)


class NiftiReader(NibabelReader):
    """MONAI's `NibabelReader` for one file, but with nibabel's affine, which is that of `scan_grid`.

    Where the voxel sizes in the header (pixdim) are not those of the sform, MONAI's own puts the qform in its place,
    even one that the header declares absent (qform_code = 0), and so turns and moves the scan.
    """

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        self.filenames = (path,) = ensure_tuple(data)
        return nib.load(path, **self.kwargs | kwargs)


class LoadScan(LoadImage):
    """MONAI's `LoadImage` for one scan, with the reader that suits it: a header with faults is never read further.

    Left to itself, `LoadImage` tries one reader after the other, reads a DICOM series with missing slices, and replaces
    the affine of a NIfTI file whose voxel sizes do not match it.

    Raises:
        DataError: as `scan_grid`, or the voxels are damaged.
    """

    def __call__(self, filename: Any, reader: ImageReader | None = None) -> Any:
        (path,) = (str(Path(name).expanduser()) for name in ensure_tuple(filename))
        scan_grid(path)
        try:
            return super().__call__(path, reader or _reader(path))
        except DataError:
            raise
        except Exception as error:  # each library has its own kinds
            raise DataError(
                f"{path}: could not be read ({reason_of(error, path)}); export the scan again or remove the file"
            ) from error


class LoadScand(LoadImaged):
    """Dictionary form of `LoadScan`, for the items of `list_scans`.

    A label that lies nearly where the first of `keys` does, as `read_datalist` tolerates it, gets exactly its affine,
    so that both are resampled to the same grid.

    Args:
        keys: paths of scans.
        image_only, ensure_channel_first, allow_missing_keys: as in `LoadImaged`.

    Raises:
        DataError: as `LoadScan`, or the item has the fault that `list_scans` found.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_only: bool = True,
        ensure_channel_first: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self._loader = LoadScan(image_only=image_only, ensure_channel_first=ensure_channel_first)

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        if "fault" in data:
            raise DataError(str(data["fault"]))
        loaded = super().__call__(data, reader)
        images = [loaded[key] for key in self.key_iterator(loaded)]
        for first, other in ((images[0], other) for other in images[1:]):
            if isinstance(other, MetaTensor) and isinstance(first, MetaTensor) and other.shape == first.shape:
                grids = [(tuple(image.shape[-3:]), np.asarray(image.affine)) for image in (first, other)]
                if distance_of_grids(*grids)[0] <= AFFINE_TOLERANCE:
                    other.affine = first.affine.clone()
        return loaded


def _reader(path: str) -> ImageReader:
    if os.path.isdir(path):
        return DicomSeriesReader()
    return ITKReader(imageio=itk_image_io(path)) if path.lower().endswith(ITK_SUFFIXES) else NiftiReader()
