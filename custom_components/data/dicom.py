"""DICOM series: a folder of slices is one scan, if they are all of one series, on one grid, and complete."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ITKReader
from monai.utils import ensure_tuple

from .headers import ITK_SUFFIXES, NIFTI_SUFFIXES, DataError, Grid, checked_grid, import_itk, reason_of, to_ras

# storage classes that are no scan: DICOMDIR; radiotherapy, presentation states, reports, documents, segmentations
OTHER_OBJECTS = (
    "1.2.840.10008.1.3.10",
    *(f"1.2.840.10008.5.1.4.1.1.{branch}." for branch in ("481", "11", "88", "104", "66")),
)
NEEDED_TAGS = {
    "0020|0032": "ImagePositionPatient",
    "0020|0037": "ImageOrientationPatient",
    "0028|0030": "PixelSpacing",
}
DICOM_SUFFIXES = (".dcm", ".ima")
# parts of a slice distance; one missing slice puts others off the even grid by at least a quarter
POSITION_TOLERANCE = 0.2


@dataclass(frozen=True)
class DicomSlice:
    """Header of a file with one slice; lengths in mm, axes LPS."""

    path: str
    series: str
    description: str
    shape: tuple[int, int]  # columns, rows
    spacing: np.ndarray  # (2,) along columns and rows
    axes: np.ndarray  # (3, 3): unit vectors along columns and rows and their normal, one a column
    position: np.ndarray  # (3,) of the first voxel

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file is a DICOM image, by its content: names often have no suffix.

    DICOM objects that hold no image of a scan (DICOMDIR, structure sets, reports, segmentations, ...) are none.
    """
    start = _start(path)
    if not _is_marked(start):
        return False
    # the file meta group is explicit little endian in every transfer syntax: tag, "UI", length, value
    _, found, rest = start.partition(b"\x02\x00\x02\x00UI")
    length = int.from_bytes(rest[:2], "little")
    storage_class = rest[2 : 2 + length].rstrip(b"\0 ").decode("ascii", "replace") if found else ""
    return not storage_class.startswith(OTHER_OBJECTS)


def dicom_files(folder: str | os.PathLike) -> Iterator[str]:
    """The DICOM images directly inside a folder, by name; hidden files and folders that cannot be read are ignored."""
    return (file for file in _candidates(folder) if is_dicom(file))


def holds_dicom(folder: str | os.PathLike) -> bool:
    """Whether a folder has a DICOM image directly inside; looks no further than the first."""
    return next(dicom_files(folder), None) is not None


def series_of(folder: str | os.PathLike) -> list[DicomSlice]:
    """The slices of the only series in a folder, ordered along their normal.

    Raises:
        DataError: ITK is not installed; no DICOM image; a file that is empty, cannot be read or has no position, or is
            named as DICOM (.dcm, .ima) but is not; several series; a multi-frame file; a single slice; slices of
            different size, spacing or orientation; several at one position; missing slices; slices off an even,
            straight grid by more than a fifth of their distance, as with a varying distance or a tilted gantry.
    """
    files = list(dicom_files(folder))
    if not files:
        raise DataError(f"{folder}: no DICOM image found directly inside; name the folder that holds the slices")
    _check_others(sorted(set(_candidates(folder)).difference(files)))
    itk = import_itk(folder)
    slices = [_read_header(itk, file) for file in files]
    series = {item.series: item for item in slices}
    if len(series) > 1:
        names = ", ".join(sorted(item.description or uid for uid, item in series.items())[:5])
        raise DataError(
            f"{folder}: one DICOM series was expected but there are {len(series)} ({names}); "
            "put each into a folder of its own"
        )
    if len(slices) == 1:
        raise DataError(
            f"{folder}: two or more slices were expected but {slices[0].name} is the only one; export the whole series"
        )
    first = slices[0]
    for item in slices[1:]:
        if (
            item.shape != first.shape
            or not np.allclose(item.spacing, first.spacing, rtol=1e-3)
            or not np.allclose(item.axes, first.axes, atol=1e-3)
        ):
            raise DataError(
                f"{folder}: slices of one size, spacing and orientation were expected but those of {item.name} are not "
                f"those of {first.name}; remove what is not of this scan, such as a localizer"
            )
    normal = first.axes[:, 2]
    slices.sort(key=lambda item: float(item.position @ normal))
    _check_positions(folder, slices, normal)
    return slices


def dicom_grid(folder: str | os.PathLike) -> Grid:
    """Shape (H, W, D) and affine (4, 4), voxel to mm, RAS, of the series in a folder.

    Raises:
        DataError: as `series_of`.
    """
    slices = series_of(folder)
    first, last = slices[0], slices[-1]
    distance = (last.position - first.position) @ first.axes[:, 2] / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3, :3] = first.axes * [*first.spacing, distance]
    affine[:3, 3] = first.position
    return checked_grid(str(folder), (*first.shape, len(slices)), to_ras(affine))


class DicomSeriesReader(ITKReader):
    """MONAI's `ITKReader`, but the slices of a folder are those of `series_of`.

    MONAI's own takes the first of what GDCM's file names generator calls a series, and so reads a part of the slices
    where a detail, such as their thickness, differs. Voxels are read as float32 because ITK would otherwise take the
    type of the first slice for all, and the rescale slope can make another one of each.

    Raises:
        DataError: as `series_of`.
    """

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        (folder,) = ensure_tuple(data)
        files = [item.path for item in series_of(folder)]
        itk = import_itk(folder)
        reader = itk.ImageSeriesReader[itk.Image[itk.F, 3]].New(FileNames=files, ImageIO=itk.GDCMImageIO.New())
        reader.SetSpacingWarningRelThreshold(1.0)  # `series_of` has checked it
        reader.Update()
        return reader.GetOutput()


def _candidates(folder: str | os.PathLike) -> Iterator[str]:
    """The files directly inside a folder that can be DICOM, by name."""
    try:
        entries = sorted(Path(folder).iterdir())
    except OSError:
        return
    for entry in entries:
        other = entry.name.startswith(".") or entry.name.lower().endswith(NIFTI_SUFFIXES + ITK_SUFFIXES)
        if not other and entry.is_file():
            yield str(entry)


def _start(path: str | os.PathLike) -> bytes:
    """The first bytes of a file, none where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(1024)
    except OSError:
        return b""


def _is_marked(start: bytes) -> bool:
    return start[128:132] == b"DICM"


def _check_others(files: Sequence[str]) -> None:
    """Faults of files beside the slices that should be DICOM: without its last slice, a series looks complete."""
    for file in files:
        start = _start(file)
        if not start:
            found = "is empty or cannot be read"
        elif file.lower().endswith(DICOM_SUFFIXES) and not _is_marked(start):
            found = "is none, or is cut off"
        else:
            continue
        raise DataError(
            f"{file}: a DICOM file was expected among the slices but this {found}; export the series again, or remove "
            "the file if it is no slice"
        )


def _read_header(itk: Any, path: str) -> DicomSlice:
    try:
        header = itk.GDCMImageIO.New()
        header.SetFileName(path)
        header.ReadImageInformation()
        tags = header.GetMetaDataDictionary()
        shape = tuple(int(header.GetDimensions(i)) for i in range(header.GetNumberOfDimensions()))
        numbers = [np.array([get(i) for i in range(3)]) for get in (header.GetSpacing, header.GetOrigin)]
        axes = np.array([header.GetDirection(i) for i in range(3)]).T
        kind = header.GetPixelTypeAsString(header.GetPixelType())
    except Exception as error:
        raise DataError(
            f"{path}: no readable DICOM image ({reason_of(error, path)}); export the series again"
        ) from None
    if len(shape) > 2 and shape[2] > 1:
        raise DataError(
            f"{path}: one slice a file was expected but it holds {shape[2]} frames; convert it to NIfTI, for instance "
            "with dcm2niix"
        )
    missing = [name for tag, name in NEEDED_TAGS.items() if not tags.HasKey(tag)]
    if missing:
        raise DataError(
            f"{path}: the DICOM header has no {missing[0]}, so positions in mm are unknown; export it again"
        )
    if kind != "scalar":
        raise DataError(f"{path}: grey values were expected but voxels are {kind}; remove what is not of this scan")
    spacing, position = numbers
    description = _tag(tags, "0008|103e")
    return DicomSlice(path, _tag(tags, "0020|000e"), description, (shape[0], shape[1]), spacing[:2], axes, position)


def _tag(tags: Any, key: str) -> str:
    return str(tags[key]).strip("\0 ") if tags.HasKey(key) else ""


def _check_positions(folder: str | os.PathLike, slices: list[DicomSlice], normal: np.ndarray) -> None:
    """Faults of the positions of ordered slices."""
    offsets = np.array([item.position - slices[0].position for item in slices])
    along = offsets @ normal
    gaps = np.diff(along)
    if gaps.min() < 1e-3:
        i = int(gaps.argmin())
        raise DataError(
            f"{folder}: one slice a position was expected but {slices[i].name} and {slices[i + 1].name} are at the "
            "same; put each phase, echo or copy into a folder of its own"
        )
    distance = along[-1] / (len(slices) - 1)
    tolerance = POSITION_TOLERANCE * distance
    usual = float(np.median(gaps))
    if np.abs(along - distance * np.arange(len(slices))).max() > tolerance:
        i = int(gaps.argmax())
        if gaps[i] > 1.5 * usual:
            raise DataError(
                f"{folder}: a slice every {usual:.3g} mm was expected but there is none for {gaps[i]:.3g} mm between "
                f"{slices[i].name} and {slices[i + 1].name}; export the missing slices too"
            )
        raise DataError(
            f"{folder}: an even slice distance was expected but it varies from {gaps.min():.3g} to {gaps.max():.3g} "
            "mm; resample the scan to an even distance"
        )
    shift = np.linalg.norm(offsets - along[:, None] * normal, axis=1).max()
    if shift > tolerance:
        raise DataError(
            f"{folder}: slices straight above each other were expected but they are shifted by up to {shift:.3g} mm, "
            "as with a tilted gantry; resample the scan to a straight grid, for instance with dcm2niix"
        )
