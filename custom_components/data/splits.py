"""Splits that depend on nothing but the names of the cases: stable, nested, and the same on every machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from custom_components.errors import InputError

from .datalists import DataError

PARTS = ("train", "validation", "test", "pretrain", "all")


def split_datalist(
    datalist: Sequence[Mapping[str, Any]],
    part: str,
    split_seed: int = 0,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.1,
    num_folds: int | None = None,
    fold: int = 0,
) -> list[dict[str, Any]]:
    """The items of one part of a split, in the order of `datalist`.

    The distinct patients that a folder names (`patient`, else `case`) are ranked by a hash of seed and name: the first
    fifth is the test part, the next tenth the validation part, the rest the training part. A patient stays whole: where
    it is a test patient in one folder it is one in all, and likewise for validation. A case without `patient` is of the
    patient of whom another folder says that it is; where folders say different ones, they are different cases of one
    name. So the test part of one folder alone has no patient in common with the training or pre-training part of that
    folder together with any others. A scan that is added moves few others; with folds, many.

    Where an item of a folder has a `part`, the parts of that folder are as its items say, and not by the hash: "test",
    "validation", or "train" where an item has none. Folds do not look at them.

    Args:
        datalist: items with `case`, `patient` where several cases are of one, `folder` where there are several, and
            `part` where it is given.
        part: "train", "validation", "test", "pretrain" (train and validation), or "all".
        split_seed: another seed, another split.
        test_fraction: held out of the n patients of each folder: `round(n * test_fraction)`; at least 1 of 3 or more
            patients, none of fewer. 0 holds out nothing.
        validation_fraction: likewise, of the same n.
        num_folds: cross-validation: instead of `test_fraction`, every `num_folds`-th patient of the ranking is held
            out, so that each is a test patient in exactly one fold. None does not cross-validate.
        fold: which of the folds is held out, from 0.

    Returns:
        The items, without their `part`.

    Raises:
        InputError: unknown part, fractions that are negative or leave nothing for training, or a fold that does not
            exist.
        DataError: no scan left in the part "train", "pretrain" or "test", or items of one patient with different
            `part`. An empty validation part is returned.
    """
    if part not in PARTS:
        raise InputError(f"part must be one of {', '.join(PARTS)} but is {part!r}")
    if min(test_fraction, validation_fraction) < 0 or test_fraction + validation_fraction >= 1:
        raise InputError(
            f"fractions must be at least 0 and sum to less than 1 but are {test_fraction} and {validation_fraction}"
        )
    if num_folds is not None and not (num_folds >= 2 and 0 <= fold < num_folds):
        raise InputError(
            f"num_folds must be at least 2 and fold from 0 to num_folds - 1 but are {num_folds} and {fold}"
        )
    group_of = _groups(datalist)
    folders: dict[str, set[str]] = {}
    for item in datalist:
        folders.setdefault(str(item.get("folder", "")), set()).add(_patient(item))
    given = {} if num_folds is not None else given_parts(datalist)
    test: set[str] = set()
    validation: set[str] = set()
    for folder, patients in folders.items():
        if folder in given:
            test.update(group_of[patient] for patient in patients if given[folder].get(patient) == "test")
            validation.update(group_of[patient] for patient in patients if given[folder].get(patient) == "validation")
            continue
        ranked = sorted(patients, key=lambda patient: (_digest(f"{split_seed}:{patient}"), patient))
        if num_folds is None:
            held_out = ranked[: _held_out(len(ranked), test_fraction)]
        else:
            held_out = ranked[fold::num_folds]
        rest = [patient for patient in ranked if patient not in held_out]
        test.update(group_of[patient] for patient in held_out)
        validation.update(group_of[patient] for patient in rest[: _held_out(len(ranked), validation_fraction)])
    validation -= test
    wanted = {
        "test": lambda group: group in test,
        "validation": lambda group: group in validation,
        "train": lambda group: group not in test and group not in validation,
        "pretrain": lambda group: group not in test,
        "all": lambda group: True,
    }[part]
    items = [
        {key: value for key, value in item.items() if key != "part"}
        for item in datalist
        if wanted(group_of[_patient(item)])
    ]
    if not items and part in ("train", "pretrain"):
        raise DataError(
            f"No training scan left: {len(datalist)} scans, all held out; add scans, lower the fractions, or correct "
            'the "part" of entries in dataset.json.'
        )
    if not items and part == "test":
        advice = 'give one "part": "test" in dataset.json' if given else "3 are the fewest that are split: add scans"
        raise DataError(
            f'No scan is held out for testing: {len(datalist)} scans, and {advice}, or take the part "all".'
        )
    return items


def few_label_subset(
    datalist: Sequence[Mapping[str, Any]], num_labelled: int | None, seed: int = 0
) -> list[dict[str, Any]]:
    """The first `num_labelled` scans of an order that the seed decides: a smaller subset is the start of a larger one.

    The order is that of a hash of seed and case name, except that until every class has been drawn (`annotated_labels`)
    the next scan is one that adds the most classes: few partly annotated scans teach all classes, if they can.

    Args:
        datalist: items with `case` and, where labelled, `annotated_labels`.
        num_labelled: number of scans; None gives all, in the order of `datalist`.
        seed: another seed, another order.

    Raises:
        InputError: `num_labelled` below 1 or not a whole number.
        DataError: `num_labelled` above the number of scans.
    """
    if num_labelled is None:
        return [dict(item) for item in datalist]
    if num_labelled != int(num_labelled) or num_labelled < 1:
        raise InputError(f"num_labelled must be a whole number of at least 1, or None for all, but is {num_labelled}")
    if num_labelled > len(datalist):
        raise DataError(
            f"num_labelled is {num_labelled} but there are {len(datalist)} scans to take it from; lower it."
        )
    rest = sorted(datalist, key=lambda item: (_digest(f"{seed}:few:{item['case']}"), item["case"]))
    missing = {label for item in rest for label in item.get("annotated_labels", ())}
    chosen = []
    for _ in range(int(num_labelled)):
        # max takes the first of equals, which is the lowest hash; once nothing is missing all are equal
        item = max(rest, key=lambda item: len(missing.intersection(item.get("annotated_labels", ()))))
        missing -= set(item.get("annotated_labels", ()))
        rest.remove(item)
        chosen.append(dict(item))
    return chosen


def digest_of_cases(items: Sequence[Mapping[str, Any]]) -> str:
    """Twelve digits that stand for these scans, in any order, wherever their folder lies: of the case names, or the
    files of unnamed ones, and of how large the files are, which tells when a scan or a label was replaced.
    """
    scans = (
        f"{item.get('case', item.get('image'))} {_bytes_of(item.get('image'))} {_bytes_of(item.get('label'))}"
        for item in items
    )
    return _digest("\n".join(sorted(scans)))[:12]


def _bytes_of(path: Any) -> int:
    return os.path.getsize(path) if isinstance(path, str) and os.path.isfile(path) else 0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _held_out(count: int, fraction: float) -> int:
    return max(round(count * fraction), 1) if count >= 3 and fraction > 0 else 0


def given_parts(datalist: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Folder -> patient -> the part that its items give, of the folders in which an item gives one.

    Raises:
        DataError: items of one patient with different parts.
    """
    given: dict[str, dict[str, str]] = {}
    for item in datalist:
        if "part" in item:
            parts = given.setdefault(str(item.get("folder", "")), {})
            if parts.setdefault(_patient(item), item["part"]) != item["part"]:
                raise DataError(
                    f"{item.get('image', item['case'])}: has the part {item['part']} but another scan of the patient "
                    f"{_patient(item)} has {parts[_patient(item)]}; give all scans of a patient the same in "
                    "dataset.json, or remove the file to split anew"
                )
    return given


def _patient(item: Mapping[str, Any]) -> str:
    return str(item.get("patient", item["case"]))


def _groups(datalist: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Patient -> one name for all patients that are the same: a case without a patient, and whom another folder says
    that the case is of.
    """
    said: dict[str, set[str]] = {}
    unsaid: set[str] = set()
    for item in datalist:
        case, patient = item["case"], _patient(item)
        if patient == case:
            unsaid.add(case)
        else:
            said.setdefault(case, set()).add(patient)
    group_of = {patient: patient for patient in map(_patient, datalist)}
    for case in sorted(unsaid & said.keys()):
        same = {group_of[name] for name in (case, *said[case])}
        first = min(same)
        group_of = {patient: first if group in same else group for patient, group in group_of.items()}
    return group_of
