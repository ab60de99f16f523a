"""Draw labels over a scan: three planes through the middle of the labels, with a named legend.

python -m scripts.show scan.nii.gz scan_seg.nii.gz overlay.png --class_names "['Liver','Spleen']"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import fire

from custom_components.data import case_name
from custom_components.errors import InputError
from custom_components.visualization import save_overlay


def show(
    image: str,
    label: str | Sequence[str],
    output: str = "overlay.png",
    class_names: str | Sequence[str] | None = None,
    window: tuple[float, float] | None = None,
    title: str = "",
) -> None:
    """Write a picture of a scan with one or several label volumes over it, a row each.

    Args:
        image: file of the scan, in any format that inference takes, or the folder of a DICOM series.
        label: file of a label volume on the scan's grid, or a list of them.
        output: the picture; its suffix decides the format (.png, .svg, .pdf).
        class_names: names of label values 1, 2, ...; values without a name are numbered.
        window: intensities shown as black and white; else soft tissue in HU, or the 1st and 99th percentile of an MRI.
        title: line above the picture.
    """
    files = [label] if isinstance(label, str) else list(label)
    if isinstance(class_names, str):
        class_names = [class_names]
    names = [case_name(file) for file in files]
    if len(set(names)) < len(names):
        names = [str(file) for file in files]
    path = save_overlay(image, dict(zip(names, files)), class_names, Path(output), window, title or case_name(image))
    print(f"wrote {path}")


if __name__ == "__main__":
    try:
        fire.Fire(show)
    except InputError as error:
        sys.exit(f"error: {error}")
