"""Pictures of an image with label volumes over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.transforms import Orientation
from monai.transforms.utils import generate_spatial_bounding_box

from custom_components.data import LoadScan
from custom_components.data.loading import distance_of_grids
from custom_components.errors import InputError

SOFT_TISSUE_HU, AIR_HU = (-175.0, 250.0), -500.0
SHOWN_APART = 0.5  # voxels; what is less cannot be seen
# name, normal axis, and what lies on the left of the picture in the radiological convention
PLANES = (("sagittal", 0, "A"), ("coronal", 1, "R"), ("axial", 2, "R"))
COLOURS = (
    "#e6194b #3cb44b #ffe119 #4363d8 #f58231 #911eb4 #42d4f4 #f032e6 "
    "#bfef45 #fabed4 #469990 #dcbeff #9a6324 #fffac8 #800000"
).split()


def overlay_figure(
    image: np.ndarray,
    labels: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    window: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """Three planes through the centre of the labels, one row a label volume, with a named legend.

    In the radiological convention: the patient's right, or front, is on the left of the picture. What is black or air
    around everything else is cut off.

    Args:
        image: `(H, W, D)` in RAS order.
        labels: title of the row -> label volume `(H, W, D)`, 0 = background, k = `class_names[k - 1]`.
        class_names: the legend; label values beyond it are added by their number.
        spacing: voxel spacing, mm; pixels are drawn with the right aspect.
        window: intensities shown as black and white; None takes soft tissue (-175 to 250 HU) where there are values of
            air in HU, below -500, and the 1st and 99th percentile otherwise.

    Raises:
        ValueError: where a label's shape is not the image's.
    """
    image = np.asarray(image, dtype=np.float32)
    for name, label in labels.items():
        if label.shape != image.shape:
            raise ValueError(f"{name}: label is {label.shape} but the image is {image.shape}")
    if window is None:
        window = SOFT_TISSUE_HU if image.min() < AIR_HU else tuple(np.percentile(image, [1, 99]))
    low, high = window
    box = _occupied(image, list(labels.values()), low)
    image, labels = image[box], {name: label[box] for name, label in labels.items()}
    names = _names_of_values(class_names, list(labels.values()))
    centre = _centre(list(labels.values()), image.shape)
    extent = [size * step for size, step in zip(image.shape, spacing)]
    widths = [extent[1], extent[0], extent[0]]
    figure = Figure(figsize=(9, 0.6 + len(labels) * 9 * max(extent[2], extent[1]) / sum(widths)), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(labels), 3, width_ratios=widths))
    highest = max(names, default=1)
    colours = ListedColormap([COLOURS[k % len(COLOURS)] for k in range(highest)])
    for row, (name, label) in zip(axes, labels.items()):
        for axis, (plane, normal, left) in zip(row, PLANES):
            rest = [i for i in range(3) if i != normal]
            options: dict[str, Any] = {"origin": "lower", "aspect": spacing[rest[1]] / spacing[rest[0]]}
            shown = np.take(label, centre[normal], normal).T
            axis.imshow(np.take(image, centre[normal], normal).T, cmap="gray", vmin=low, vmax=high, **options)
            masked = np.ma.masked_equal(shown, 0) - 1
            axis.imshow(
                masked,
                cmap=colours,
                vmin=0,
                vmax=max(highest - 1, 1),
                alpha=0.55,
                interpolation="nearest",
                **options,
            )
            axis.invert_xaxis()
            axis.text(0.02, 0.5, left, color="white", fontsize=9, va="center", transform=axis.transAxes)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(plane if axis is not row[0] else f"{name}: {plane}", fontsize=9)
    handles = [Patch(color=colours(value - 1), label=name) for value, name in names.items()]
    columns = max(min(5, len(handles)), 1)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _names_of_values(class_names: Sequence[str], labels: Sequence[np.ndarray]) -> dict[int, str]:
    """Label values with their `class_names`, then, by their number, those that occur without a name."""
    names = dict(enumerate(class_names, 1))
    others = {int(value) for label in labels if label.max() > len(names) for value in np.unique(label)}
    return names | {value: f"class {value}" for value in sorted(others) if value > len(names)}


def _occupied(image: np.ndarray, labels: Sequence[np.ndarray], low: float) -> tuple[slice, ...]:
    """The box of all that is labelled or brighter than `low`; the whole image where nothing is brighter."""
    bright = image > low
    if not bright.any():
        return (slice(None),) * 3
    shown = np.logical_or.reduce([bright, *(label > 0 for label in labels)])
    first, end = generate_spatial_bounding_box(shown[None])
    return tuple(map(slice, first, end))


def _centre(labels: Sequence[np.ndarray], shape: Sequence[int]) -> list[int]:
    """The voxel in the middle of the first label volume that has any, else of the image."""
    for label in labels:
        where = np.nonzero(label)
        if len(where[0]):
            return [int(np.median(positions)) for positions in where]
    return [size // 2 for size in shape]


def read_in_ras(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A scan or label volume `(H, W, D)` in RAS order and its affine (4, 4); any format that `LoadScan` reads.

    Raises:
        InputError: no such file, or as `LoadScan`.
    """
    if not Path(path).exists():
        raise InputError(f"{path}: no such file; check the path")
    load = LoadScan(image_only=True, ensure_channel_first=True)
    volume: Any = Orientation(axcodes="RAS", labels=None)(load(path))
    return np.asarray(volume[0]), np.asarray(volume.affine, dtype=float)


def save_overlay(
    image: str | Path,
    labels: Mapping[str, str | Path],
    class_names: Sequence[str] | None,
    output: str | Path,
    window: tuple[float, float] | None = None,
    title: str = "",
) -> Path:
    """Write `overlay_figure` of files, turned to RAS order first, as PNG or what the suffix of `output` says.

    Args:
        image: file of the scan.
        labels: title of the row -> file of a label volume on the scan's grid.
        class_names: as in `overlay_figure`; None numbers all classes.
        window, title: as in `overlay_figure`.

    Raises:
        InputError: a file that cannot be read, or a label of another shape than the scan or more than half a voxel off.
    """
    scan, affine = read_in_ras(image)
    volumes = {}
    for name, path in labels.items():
        volume, label_affine = read_in_ras(path)
        if volume.shape != scan.shape:
            raise InputError(
                f"{path}: label is {volume.shape} but {image} is {scan.shape}, both in RAS order; "
                "resample one to the other"
            )
        voxels, distance = distance_of_grids((scan.shape, affine), (volume.shape, label_affine))
        if voxels > SHOWN_APART:
            raise InputError(
                f"{path}: lies up to {distance:.3g} mm off {image} according to their affines; it is the label of "
                "another scan, or its header is wrong"
            )
        volumes[name] = volume.astype(np.int16)
    spacing = [float(step) for step in np.linalg.norm(affine[:3, :3], axis=0)]
    figure = overlay_figure(scan, volumes, class_names or [], spacing, window, title)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130)
    return output
