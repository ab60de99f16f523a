"""From the scores of many trainings to means with intervals, and differences to training from scratch."""

from __future__ import annotations

import csv
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from custom_components.errors import InputError

from .grid import UNTRAINED, Cell

CASE_COLUMNS = ("bundle", "backbone", "head", "num_labelled", "seed", "case", "class", "dice", "hd95_mm")
DIFFERENCE = ("difference", "difference_low", "difference_high", "p_value", "difference_by_seed")
SUMMARY_COLUMNS = (
    *("bundle", "backbone", "head", "num_labelled", "seeds", "cases"),
    *("dice", "dice_low", "dice_high", "hd95_mm", "missed", *DIFFERENCE),
)
RESAMPLES = 2000


def case_rows(cells: Iterable[Cell], output_dir: Path) -> list[dict[str, Any]]:
    """The rows of every cell's `metrics.csv`, with the cell in front; cells without scores are left out."""
    rows = []
    for cell in cells:
        path = cell.folder(output_dir) / "metrics.csv"
        if not path.is_file():
            continue
        about = {
            "bundle": cell.bundle.name,
            "backbone": cell.backbone,
            "head": cell.head,
            "num_labelled": cell.labels,
            "seed": cell.seed,
        }
        # scans of one name, of two folders, are two cases
        found: Counter[tuple[str, str]] = Counter()
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                found[row["case"], row["class"]] += 1
                count = found[row["case"], row["class"]]
                case = row["case"] if count == 1 else f"{row['case']} ({count})"
                scores = {name: _score(row[name]) for name in ("dice", "hd95_mm")}
                rows.append({**about, "case": case, "class": row["class"], **scores})
    return rows


def read_cases(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a `cases.csv`, as `case_rows` gives them.

    Raises:
        InputError: no such file, or not the columns of a `cases.csv`.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; name a cases.csv as scripts.label_efficiency writes it")
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != CASE_COLUMNS:
            found = ",".join(reader.fieldnames or ())
            raise InputError(f"{path}: the columns must be {','.join(CASE_COLUMNS)} but are {found}")
        return [
            {**row, "seed": int(row["seed"]), **{name: _score(row[name]) for name in ("dice", "hd95_mm")}}
            for row in reader
        ]


def _score(text: str) -> float | None:
    return float(text) if text else None


def summarise(
    rows: Sequence[dict[str, Any]], reference: str | None = None, without: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One row a bundle, backbone, head and number of labelled scans.

    `dice` is the mean over classes of the mean over cases, of scores that are first averaged over seeds; its 95%
    interval is a percentile bootstrap over the `cases` in which any class is scored; resamples that lack a class say
    nothing of the mean over classes and are left out. `difference` is the same for the difference to a reference with
    as many labels and the same seeds; its p-value is that of Wilcoxon's signed-rank test on the cases. The intervals
    are for other scans, not for other trainings: the spread over seeds is not in them; `difference_by_seed` shows it,
    a number a seed, in the order of the seeds. `hd95_mm` is the mean over what has a distance; `missed` counts the
    classes that have none, found where there are none or not found where there are.

    Args:
        rows: as `case_rows` and `read_cases` give them.
        reference: name of a backbone, each of its heads the reference of the same head; None: training from scratch,
            which is the untrained backbone fine-tuned, for every head.
        without: classes that are left out, such as one that some trainings do not find at all.

    Raises:
        InputError: `without` names a class that no row has.
    """
    strange = sorted(set(without) - {row["class"] for row in rows})
    if strange:
        raise InputError(f"without: must be of the classes of the scores but {', '.join(strange)} came")
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        if row["class"] in without:
            continue
        groups.setdefault((row["bundle"], row["backbone"], row["head"], row["num_labelled"]), []).append(row)
    summary = []
    for (bundle, backbone, head, count), group in groups.items():
        values = _scored(_table(group, *_keys(group)))
        low, high = _interval(values)
        distances = [row["hd95_mm"] for row in group if row["hd95_mm"] is not None]
        finite = [distance for distance in distances if math.isfinite(distance)]
        result = {
            "bundle": bundle,
            "backbone": backbone,
            "head": head,
            "num_labelled": count,
            "seeds": len({row["seed"] for row in group}),
            "cases": len(values),
            "dice": float(_macro_mean(values)),
            "dice_low": low,
            "dice_high": high,
            "hd95_mm": float(np.mean(finite)) if finite else None,
            "missed": len(distances) - len(finite),
            **dict.fromkeys(DIFFERENCE),
        }
        other = groups.get((bundle, reference or UNTRAINED, head if reference else "finetune", count))
        if other is not None and other is not group:
            seeds = {row["seed"] for row in group} & {row["seed"] for row in other}
            pair = [[row for row in side if row["seed"] in seeds] for side in (group, other)]
            # the scans that both were scored on, each with itself
            cases, classes = (sorted(set(one) & set(other)) for one, other in zip(*map(_keys, pair)))
            if cases and classes:
                first, second = (_table(side, cases, classes) for side in pair)
                by_seed = []
                for seed in sorted(seeds):
                    one, two = (_table([row for row in side if row["seed"] == seed], cases, classes) for side in pair)
                    by_seed.append(f"{_macro_mean(_scored(one - two)):+.3f}")
                if len(both := _scored(first - second)):
                    result.update(zip(DIFFERENCE, (*_difference(both), ", ".join(by_seed))))
        summary.append(result)
    return summary


def _keys(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The cases and the classes of rows, sorted."""
    cases, classes = (sorted({row[key] for row in rows}) for key in ("case", "class"))
    return cases, classes


def _table(rows: Sequence[dict[str, Any]], cases: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Dice (cases, classes), averaged over seeds; NaN where a class is not annotated."""
    total, count = np.zeros((2, len(cases), len(classes)))
    for row in rows:
        if row["dice"] is not None and row["case"] in cases and row["class"] in classes:
            place = cases.index(row["case"]), classes.index(row["class"])
            total[place] += row["dice"]
            count[place] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _scored(values: np.ndarray) -> np.ndarray:
    """The cases that have a score of any class, and the classes that have one of any case."""
    there = ~np.isnan(values)
    return values[there.any(axis=1)][:, there.any(axis=0)]


def _macro_mean(values: np.ndarray) -> np.ndarray:
    """Mean over classes of the mean over cases, of scores (..., cases, classes); NaN where no case has a class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=-2).mean(axis=-1)


def _interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """95% interval of the macro mean over resampled cases; None where there is a single case."""
    if len(values) < 2:
        return None, None
    # not scipy's bootstrap, which knows no resamples to leave out; the same numbers where there are none
    chosen = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.nanpercentile(_macro_mean(values[chosen]), [2.5, 97.5])
    return float(low), float(high)


def _difference(values: np.ndarray) -> tuple[float, float | None, float | None, float | None]:
    low, high = _interval(values)
    by_case = np.nanmean(values, axis=1)
    p_value = float(stats.wilcoxon(by_case).pvalue) if by_case.any() else 1.0
    return float(_macro_mean(values)), low, high, p_value
