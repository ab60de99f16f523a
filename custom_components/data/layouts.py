"""The folder layouts in which two public data sets come, so that their scans are read as they were downloaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .datalists import DataError, checked, items_of

BTCV_LAYOUTS = [
    ("RawData/Training/img", "RawData/Training/label"),
    ("Training/img", "Training/label"),
    ("img", "label"),
    ("imagesTr", "labelsTr"),
]
AMOS_PARTS = ("Tr", "Va", "Ts")
FIRST_AMOS_MRI = 500


def read_btcv(dataset_dir: str | os.PathLike, num_classes: int = 13, labelled: bool = True) -> list[dict[str, Any]]:
    """The training scans of BTCV ("Beyond the Cranial Vault", Synapse syn3193805), abdomen.

    Args:
        dataset_dir: the folder that holds `RawData/Training/img/img0001.nii.gz` and `.../label/label0001.nii.gz`, as
            downloaded, or the same pairs in `img` and `label`, or in `imagesTr` and `labelsTr`.
        num_classes: number of classes; label values above it are not those of BTCV.
        labelled: whether every scan must have a label.

    Returns:
        Items as those of `read_datalist`; `case` is `img0001`.

    Raises:
        DataError: no scan in that layout; a missing label; and the faults of headers that `read_datalist` names.
    """
    folder = _existing(dataset_dir)
    for images, labels in BTCV_LAYOUTS:
        pairs = [
            {"image": f"{images}/{name}", "label": f"{labels}/{name.replace('img', 'label', 1)}"}
            for name in _names(folder / images, r"img\d+\.nii(\.gz)?")
        ]
        if pairs:
            return _items(folder, pairs, num_classes, labelled)
    looked = ", ".join(f"{images}/img*.nii.gz" for images, _ in BTCV_LAYOUTS)
    raise DataError(f"{folder}: no scan of BTCV found; looked for {looked}")


def read_amos(
    dataset_dir: str | os.PathLike, modality: str = "MRI", num_classes: int = 12, labelled: bool = True
) -> list[dict[str, Any]]:
    """The scans of one modality of AMOS22 (Ji et al., NeurIPS 2022), training and validation part together.

    Args:
        dataset_dir: the folder that holds `imagesTr/amos_0001.nii.gz`, `labelsTr`, `imagesVa` and `labelsVa`, as
            downloaded. Numbers from 500 are MRI.
        modality: "CT" or "MRI".
        num_classes: number of classes that are used; map the label values above it to the background.
        labelled: whether every scan must have a label; if false, the test images (`imagesTs`) are listed too.

    Returns:
        Items as those of `read_datalist`; `case` is `amos_0507`. The test images are a `folder` of their own, so that
        a split of all holds out the same labelled scans as a split of the labelled ones.

    Raises:
        ValueError: unknown modality.
        DataError: no scan of that modality; a missing label; and the faults of headers that `read_datalist` names.
    """
    if modality not in ("CT", "MRI"):
        raise ValueError(f'modality must be "CT" or "MRI" but is {modality!r}')
    folder = _existing(dataset_dir)
    entries = [
        {"image": f"images{part}/{name}", "label": f"labels{part}/{name}"}
        for part in (AMOS_PARTS[:2] if labelled else AMOS_PARTS)
        for name in _names(folder / f"images{part}", r"amos_\d+\.nii(\.gz)?")
        if (int(re.findall(r"\d+", name)[0]) >= FIRST_AMOS_MRI) == (modality == "MRI")
    ]
    if not entries:
        raise DataError(
            f"{folder}: no {modality} scan of AMOS found; looked for amos_*.nii.gz in imagesTr and imagesVa, "
            f"numbered {'from' if modality == 'MRI' else 'below'} {FIRST_AMOS_MRI}"
        )
    items = _items(folder, entries, num_classes, labelled)
    for item in items:
        part = Path(item["image"]).parent
        if part.name == f"images{AMOS_PARTS[2]}":
            item["folder"] = str(part)
    return items


def _existing(dataset_dir: str | os.PathLike) -> Path:
    folder = Path(dataset_dir).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check dataset_dir")
    return folder


def _names(folder: Path, pattern: str) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if re.fullmatch(pattern, entry.name))


def _items(folder: Path, entries: Sequence[dict[str, str]], num_classes: int, labelled: bool) -> list[dict[str, Any]]:
    faults: list[str] = []
    return checked(items_of(folder, entries, num_classes, labelled, faults), faults)
