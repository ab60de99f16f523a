"""Pictures of an image with label volumes over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

PLANES = (("sagittal", 0), ("coronal", 1), ("axial", 2))
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

    Args:
        image: `(H, W, D)` in RAS order.
        labels: title of the row -> label volume `(H, W, D)`, 0 = background, k = `class_names[k - 1]`.
        spacing: voxel spacing, mm; pixels are drawn with the right aspect.
        window: intensities shown as black and white; None takes the 1st and 99th percentile.

    Raises:
        ValueError: where a label's shape is not the image's.
    """
    image = np.asarray(image, dtype=np.float32)
    for name, label in labels.items():
        if label.shape != image.shape:
            raise ValueError(f"{name}: label is {label.shape} but the image is {image.shape}")
    low, high = window if window is not None else np.percentile(image, [1, 99])
    centre = _centre(list(labels.values()), image.shape)
    extent = [size * step for size, step in zip(image.shape, spacing)]
    widths = [extent[1], extent[0], extent[0]]
    figure = Figure(figsize=(9, 0.6 + len(labels) * 9 * max(extent[2], extent[1]) / sum(widths)), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(labels), 3, width_ratios=widths))
    colours = ListedColormap([COLOURS[k % len(COLOURS)] for k in range(len(class_names))])
    for row, (name, label) in zip(axes, labels.items()):
        for axis, (plane, normal) in zip(row, PLANES):
            rest = [i for i in range(3) if i != normal]
            options: dict[str, Any] = {"origin": "lower", "aspect": spacing[rest[1]] / spacing[rest[0]]}
            shown = np.take(label, centre[normal], normal).T
            axis.imshow(np.take(image, centre[normal], normal).T, cmap="gray", vmin=low, vmax=high, **options)
            masked = np.ma.masked_equal(shown, 0) - 1
            axis.imshow(
                masked,
                cmap=colours,
                vmin=0,
                vmax=max(len(class_names) - 1, 1),
                alpha=0.55,
                interpolation="nearest",
                **options,
            )
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(plane if axis is not row[0] else f"{name}: {plane}", fontsize=9)
    handles = [Patch(color=colours(k / max(len(class_names) - 1, 1)), label=name) for k, name in enumerate(class_names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _centre(labels: Sequence[np.ndarray], shape: Sequence[int]) -> list[int]:
    """The voxel in the middle of the first label volume that has any, else of the image."""
    for label in labels:
        where = np.nonzero(label)
        if len(where[0]):
            return [int(np.median(positions)) for positions in where]
    return [size // 2 for size in shape]


def save_overlay(
    image: str | Path,
    labels: Mapping[str, str | Path],
    class_names: Sequence[str],
    output: str | Path,
    window: tuple[float, float] | None = None,
    title: str = "",
) -> Path:
    """Write `overlay_figure` of NIfTI files, turned to RAS order first, as PNG or what the suffix of `output` says.

    Args:
        image: file of the scan.
        labels: title of the row -> file of a label volume on the scan's grid.
        class_names, window, title: as in `overlay_figure`.
    """
    scan = nibabel.as_closest_canonical(nibabel.load(image))
    volumes = {
        name: np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj).astype(np.int16)
        for name, path in labels.items()
    }
    spacing = [float(size) for size in scan.header.get_zooms()[:3]]
    figure = overlay_figure(np.asarray(scan.dataobj), volumes, class_names, spacing, window, title)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130)
    return output
