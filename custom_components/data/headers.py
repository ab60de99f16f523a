"""The grid of a scan from the header of its file: NIfTI through nibabel, NRRD and MetaImage through ITK."""

from __future__ import annotations

import os
import re
from typing import Any

import nibabel as nib
import numpy as np

from custom_components.errors import InputError

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
POSITION_CODES = ("qform_code", "sform_code")
INSTALL_ITK = "pip install 'itk-io>=5.4,<6'"

Grid = tuple[tuple[int, ...], np.ndarray]


class DataError(InputError):
    """Faults of the user's data, one line a faulty file: what was expected, what came, what to do."""


def nifti_grid(path: str) -> Grid:
    """Shape (H, W, D) and affine (4, 4), voxel to mm, RAS, of a NIfTI file.

    Raises:
        DataError: the header is not readable or not that of a 3D scan with real numbers and a regular affine.
    """
    try:
        scan: Any = nib.load(path)
        shape, affine, dtype = tuple(int(n) for n in scan.shape), scan.affine, scan.get_data_dtype()
    except Exception as error:  # nibabel, gzip and zlib raise many kinds
        raise _unreadable(path, "NIfTI", error) from None
    return checked_grid(path, shape, affine, "" if dtype.kind in "iuf" else str(dtype))


def is_placed(path: str | os.PathLike) -> bool:
    """Whether a scan says how it lies in the patient; a NIfTI file with qform_code and sform_code 0 does not.

    Its affine is nibabel's guess: the first axis runs from right to left, the middle of the scan is at 0 mm.
    """
    if not str(path).lower().endswith(NIFTI_SUFFIXES):
        return True
    header: Any = nib.load(path).header
    return any(int(header[code]) for code in POSITION_CODES if code in header.keys())


def itk_grid(path: str) -> Grid:
    """As `nifti_grid`, for an NRRD or MetaImage file.

    Raises:
        DataError: as `nifti_grid`, or ITK is not installed.
    """
    header = itk_image_io(path)
    try:
        header.SetFileName(path)
        header.ReadImageInformation()
        axes = range(header.GetNumberOfDimensions())
        shape = tuple(int(header.GetDimensions(i)) for i in axes)
        directions = np.array([header.GetDirection(i) for i in axes], dtype=float)
        spacing = np.array([header.GetSpacing(i) for i in axes], dtype=float)
        origin = np.array([header.GetOrigin(i) for i in axes], dtype=float)
        kind = header.GetPixelTypeAsString(header.GetPixelType())
    except Exception as error:
        raise _unreadable(path, "NRRD" if _is_nrrd(path) else "MetaImage", error) from None
    affine = np.eye(4)
    if len(shape) >= 3:
        affine[:3, :3] = directions[:3, :3].T * spacing[:3]
        affine[:3, 3] = origin[:3]
    return checked_grid(path, shape, to_ras(affine), "" if kind == "scalar" else kind)


def checked_grid(path: str, shape: tuple[int, ...], affine: np.ndarray | None, other_voxels: str = "") -> Grid:
    """Shape (H, W, D) and affine of a header, if a scan can have them; `other_voxels` names voxels that are no numbers.

    Raises:
        DataError: not 3D (a fourth axis of 1 is fine), singular or not finite affine, other voxels than real numbers.
    """
    # (H, W, D, 1) is read as one channel by MONAI, so it is as good as (H, W, D)
    spatial = shape[:3] if len(shape) == 4 and shape[3] == 1 else shape
    if len(spatial) != 3 or 0 in spatial:
        raise DataError(f"{path}: a 3D scan was expected but its shape is {shape}; store one 3D volume a file")
    if affine is None or _is_singular(affine):
        raise DataError(
            f"{path}: the affine is singular or not finite, so positions in mm are unknown; correct the header"
        )
    if other_voxels:
        raise DataError(
            f"{path}: whole or floating-point numbers were expected but voxels are {other_voxels}; convert the scan"
        )
    return spatial, np.asarray(affine, dtype=float)


def itk_image_io(path: str) -> Any:
    """ITK's reader of an NRRD or MetaImage file; left to itself, ITK knows the latter by suffixes in lower case only.

    Raises:
        DataError: ITK is not installed.
    """
    itk = import_itk(path)
    return (itk.NrrdImageIO if _is_nrrd(path) else itk.MetaImageIO).New()


def to_ras(affine: np.ndarray) -> np.ndarray:
    """Affine (4, 4) from ITK's and DICOM's axes (LPS) to NIfTI's and MONAI's (RAS)."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def import_itk(path: str | os.PathLike) -> Any:
    """The module `itk`.

    Raises:
        DataError: ITK is not installed, but needed to read `path`.
    """
    try:
        import itk
    except ImportError:
        raise DataError(
            f"{path}: this format is read by ITK, which is not installed; run {INSTALL_ITK}, or convert it to NIfTI"
        ) from None
    return itk


def reason_of(error: BaseException, path: str = "") -> str:
    """Why something failed, in a few words for brackets in a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # a message that quotes a traceback, and ITK's with the line of its source, have what matters at their end
    last = any(mark in str(error) for mark in ("Traceback (most recent call last)", "ITK ERROR"))
    text = lines[-1 if last else 0] if lines else type(error).__name__
    text = re.sub(r"^ITK ERROR: \w+\(\w+\): ", "", text)
    return (text.replace(path, "the file") if path else text)[:200]


def _is_singular(affine: np.ndarray) -> bool:
    """Whether an affine has values that are not finite, voxels without extent, or axes that are not three directions;
    voxels may be as small as they like.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not spacing.all():
        return True
    return abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-6


def _is_nrrd(path: str) -> bool:
    return path.lower().endswith((".nrrd", ".nhdr"))


def _unreadable(path: str, kind: str, error: Exception) -> DataError:
    return DataError(
        f"{path}: no readable {kind} header ({reason_of(error, path)}); export the scan again or remove the file"
    )
