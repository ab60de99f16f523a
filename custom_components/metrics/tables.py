"""Tables on disk."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from custom_components.delivery import file_digest
from custom_components.errors import InputError
from custom_components.files import whole_file
from custom_components.provenance import running_command


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, whole or not at all.

    Numbers have four decimals, or two digits where that would leave nothing of them (p-values); None is an empty field.
    """
    with whole_file(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            values = [row[column] for column in columns]
            writer.writerow([_number(value) if isinstance(value, float) else value for value in values])


def record_scores(scores: str | Path, weights: str | Path, split: str) -> Path:
    """Write beside a table of scores, as `metrics.json` beside `metrics.csv`, which weights it is of, and by which
    command.

    Args:
        scores: the table.
        weights: the file that was scored.
        split: part of the data that was scored, as in `split_datalist`.
    """
    path = Path(scores).with_suffix(".json")
    record = {"scores": file_digest(scores), "weights": file_digest(weights), "split": split}
    record["command"] = running_command()
    with whole_file(path) as partial:
        partial.write_text(json.dumps(record, indent=4) + "\n")
    return path


def scored_split(scores: str | Path, weights: str | Path) -> str:
    """The part of the data that a table of scores is of, after a look whether it is of these weights.

    Raises:
        InputError: it is of other weights, was changed, or has no record.
    """
    path = Path(scores).with_suffix(".json")
    again = "run evaluate.json with these weights"
    if not path.is_file():
        raise InputError(f"{path}: no such file, so that nobody knows which weights {scores} is of; {again}")
    try:
        record = json.loads(path.read_text())
        found, split = {"scores": record["scores"], "weights": record["weights"]}, str(record["split"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is not the record of scores that evaluate.json writes; {again}") from None
    for name, file in (("weights", weights), ("scores", scores)):
        if found[name] != file_digest(file):
            raise InputError(f"{path}: was written for other {name} than {file}; {again}")
    return split


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{value:.4f}"
