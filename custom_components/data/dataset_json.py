"""`dataset.json` for a folder of scans: classes, patients, and a split that stays as it is when scans are added."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from custom_components.files import whole_file

from .datalists import GIVEN_PARTS, DataError, case_name, entries_of_files, items_to_split, read_json
from .splits import given_parts, split_datalist


def write_dataset_json(
    folder: str | os.PathLike, class_names: Sequence[str] | None = None, patient: str | None = None
) -> dict[str, Any]:
    """Write the `dataset.json` of a folder with `imagesTr` and `labelsTr`, or bring it up to date with the files there.

    Every scan gets its `label` where there is one, its `patient`, and its `part`: that of `split_datalist`, as it is
    without the file. What an entry of the file says already stays, its part above all; a new scan of a patient whom the
    file knows has the patient's part, and new patients are for training. Entries whose image is not there any more are
    left out, and labels that are not.

    Args:
        folder: the scans lie in its `imagesTr`, or directly in it.
        class_names: the classes of label values 1, 2, ...; None keeps those of the file, if it has any.
        patient: regular expression that finds the patient in the name of a scan (without .nii.gz): its first group,
            else all that it matches. It is kept in the file as `patient_in_name`; None takes the one that the file has,
            and without any the whole name.

    Returns:
        What was written.

    Raises:
        DataError: no such folder or no scan in it, a `dataset.json` that cannot be read or has a patient or part that
            cannot be, no regular expression, or one that does not match a name, or scans of one patient that have
            different parts already. Nothing is written then.
    """
    folder = Path(folder).expanduser()
    file = folder / "dataset.json"
    content = read_json(file) if file.is_file() else {}
    listed = [entry for entry in content.get("training") or [] if isinstance(entry, dict) and "image" in entry]
    known = {case_name(entry["image"]): entry for entry in listed}
    patient = content.get("patient_in_name") if patient is None else patient
    entries = []
    for found in entries_of_files(folder):
        case = case_name(found["image"])
        entry = {**known.pop(case, {}), **{key: f"./{Path(path).as_posix()}" for key, path in found.items()}}
        if patient is not None:
            entry["patient"] = _patient_of(case, patient, found["image"])
        entries.append(entry)
    # scans that lie elsewhere
    entries += [entry for entry in known.values() if (folder / entry["image"]).is_file()]
    for entry in entries:
        if "label" in entry and not (folder / entry["label"]).is_file():
            del entry["label"]
    if patient is not None:
        content["patient_in_name"] = patient
    if class_names is not None:
        content["labels"] = {str(value): name for value, name in enumerate(["background", *class_names])}
    _give_parts(folder, entries)
    content["training"] = entries
    with whole_file(file) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return content


def _give_parts(folder: Path, entries: list[dict[str, Any]]) -> None:
    """The `part` of each entry that has none."""
    faults: list[str] = []
    items = items_to_split(folder, entries, faults)
    if faults:
        raise DataError("\n".join(faults))
    given = {name: part for parts in given_parts(items).values() for name, part in parts.items()}
    parts: dict[str, str] = {}
    for part in () if given else GIVEN_PARTS:
        with contextlib.suppress(DataError):  # too few patients to hold one out
            parts.update({item["patient"]: part for item in split_datalist(items, part)})
    for item, entry in zip(items, entries):
        entry.setdefault("part", given.get(item["patient"]) or parts.get(item["patient"], "train"))


def count_parts(content: dict[str, Any]) -> str:
    """How many scans of each part a `dataset.json` has, with and without labels, in words."""
    numbers = Counter((entry["part"], "label" in entry) for entry in content["training"])
    told = (f"{part} {numbers[part, True]} labelled, {numbers[part, False]} not" for part in GIVEN_PARTS)
    return "; ".join(told)


def _patient_of(case: str, pattern: str, image: str) -> str:
    try:
        match = re.search(pattern, case)
    except re.error as error:
        raise DataError(f"patient: {pattern!r} is no regular expression ({error}); correct it") from None
    if match is None or not (match[1] if match.re.groups else match[0]):
        raise DataError(
            f"{image}: {pattern!r} finds no patient in the name {case}; correct the expression or rename it"
        )
    return match[1] if match.re.groups else match[0]
