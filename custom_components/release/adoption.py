"""Weights of a training become those of a bundle: the files, their record, and the figures measured with them.

What `checks.py` asks of a release is written here, so that no hash and no figure is typed by hand.
"""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from custom_components.delivery import file_digest
from custom_components.errors import InputError
from custom_components.metrics import scored_split, seen_among, warn_of_seen
from custom_components.networks import read_weights
from custom_components.networks.weight_files import provenance_path
from custom_components.provenance import shell_command, without_places

from .checks import setting_faults

RECORDED = ("data", "scans", "command", "commit", "steps", "minutes", "machine")
# what belongs to the weights that a bundle had
FORMER = (
    *(
        f"models/{name}"
        for name in ("pretraining.pt", "pretraining.json", "model.safetensors", "model.safetensors.json")
    ),
    *(f"docs/{name}" for name in ("metrics.csv", "metrics.json", "retrieval.csv", "retrieval.json")),
)
BEGIN = "<!-- figures of the weights, written by scripts.adopt_weights: begin -->"
END = "<!-- end -->"


def adopt_weights(
    bundle: Path, weights: Path, scores: Path, licence: str, with_cases: bool = False
) -> dict[str, float]:
    """Put trained weights into a bundle, with the figures of an evaluation; weights and scores that it had are removed.

    Logs a warning where scans that were scored have names that the weights have seen. Absolute paths in the record,
    which name places of one machine and perhaps people, come relative to the checkout or as their last part.

    Writes `models/model.pt` and `.json`; `weights` and `eval_metrics` of `configs/metadata.json`; and the block between
    two comments in the section "Released weights" of `docs/README.md`, which is added where it is missing.

    Args:
        bundle: folder of the bundle.
        weights: `model.pt` of a training, with `model.json` beside it.
        scores: `metrics.csv` or `retrieval.csv` that the bundle's `evaluate.json` wrote for these weights, with the
            record beside it that says so.
        licence: of the weights, as the Hugging Face Hub spells it, such as cc-by-4.0.
        with_cases: also copy the scores of every case to `docs/`, and keep in the record which scans the weights have
            seen; the names may tell who the patients are.

    Returns:
        The figures, as they are written to `eval_metrics`.

    Raises:
        InputError: a file is missing, damaged, or not what it should be, the scores are of other weights, or the
            bundle is for a network with other classes, spacing, intensities or size; then nothing is written.
    """
    metadata_path, readme = bundle / "configs" / "metadata.json", bundle / "docs" / "README.md"
    for path in (metadata_path, readme, provenance_path(weights), scores):
        if not path.is_file():
            raise InputError(f"{path}: no such file; it is needed to put weights with their figures into {bundle.name}")
    read_weights(weights)  # refuses what is damaged
    record = json.loads(provenance_path(weights).read_text())
    rows = _rows(scores)
    scored = list(dict.fromkeys(row["class"] for row in rows if "class" in row))
    if scored and "classes" in record and sorted(scored) != sorted(record["classes"]):
        raise InputError(
            f"{scores}: has the classes {', '.join(scored)}, but {weights} was trained for "
            f"{', '.join(record['classes'])}; name the scores of these weights"
        )
    for fault in setting_faults(bundle, record):
        raise InputError(f"{bundle.name}/{fault}")
    figures = _figures(rows)
    split = scored_split(scores, weights)
    cases = [{"case": case} for case in dict.fromkeys(row["case"] for row in rows)]
    warn_of_seen(cases, weights)
    scans = "held-out scans" if split == "test" else f"scans (`--split {split}`)"
    if seen := seen_among(cases, weights):
        scans = f"scans, of which {len(seen)} have the names of scans that the training has seen"
    table = "\n".join(_table(rows, scans))
    if with_cases:
        table += f"\n\nThe scores of every case: [{scores.name}]({scores.name})."
    metadata = json.loads(metadata_path.read_text())
    try:
        record["command"] = shell_command(shlex.split(record.get("command", "?")))
    except ValueError:
        raise InputError(f"{provenance_path(weights)}: its command is no shell command; correct it") from None
    if not with_cases:
        record.pop("seen_scans", None)
    record |= {key: without_places(record[key]) for key in ("data", "pretrained", "command") if key in record}
    stated = {"sha256": file_digest(weights), "license": licence, **{k: record[k] for k in RECORDED if k in record}}
    metadata["weights"] = {"models/model.pt": stated}
    metadata["eval_metrics"] = figures
    text = _with_block(readme.read_text(), f"{_description(record, stated, weights)}\n\n{table}\n")

    models, docs = bundle / "models", bundle / "docs"
    models.mkdir(exist_ok=True)
    copies = {weights: models / "model.pt"}
    if with_cases:
        copies |= {path: docs / path.name for path in (scores, scores.with_suffix(".json"))}
    for source, target in copies.items():
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)
    if with_cases:
        scored_by = docs / scores.with_suffix(".json").name
        told = {key: without_places(value) for key, value in json.loads(scored_by.read_text()).items()}
        scored_by.write_text(json.dumps(told, indent=4) + "\n")
    (models / "model.json").write_text(json.dumps(record, indent=4) + "\n")
    for name in FORMER:
        if bundle / name not in (*copies, *copies.values()):
            (bundle / name).unlink(missing_ok=True)
    metadata_path.write_text(json.dumps(metadata, indent=4, ensure_ascii=False) + "\n")
    readme.write_text(text)
    return figures


def _rows(scores: Path) -> list[dict[str, str]]:
    with open(scores, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "case" not in rows[0] or ("dice" in rows[0]) != ("class" in rows[0]):
        raise InputError(
            f"{scores}: is not a table of scores as evaluate.json writes it; name its metrics.csv or retrieval.csv"
        )
    return rows


def _number(row: Mapping[str, str], column: str) -> float | None:
    try:
        value = float(row[column])
    except (ValueError, TypeError):
        return None
    return value if math.isfinite(value) else None


def _mean(rows: Sequence[Mapping[str, str]], column: str) -> float | None:
    values = [value for row in rows if (value := _number(row, column)) is not None]
    return sum(values) / len(values) if values else None


def _by_class(rows: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    """Class -> its rows with a Dice, in the order of the file; classes without one are left out."""
    classes: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        if _number(row, "dice") is not None:
            classes.setdefault(row["class"], []).append(row)
    return classes


def _figures(rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Mean Dice and that of every class; of a table without classes, the mean of every column of numbers."""
    if "dice" not in rows[0]:
        means = {column: _mean(rows, column) for column in rows[0] if column != "case"}
        return {column: round(mean, 4) for column, mean in means.items() if mean is not None}
    dice = {name: _mean(found, "dice") or 0.0 for name, found in _by_class(rows).items()}
    if not dice:
        raise InputError("scores: no class has a Dice; evaluate on labelled scans")
    return {
        "mean_dice": round(sum(dice.values()) / len(dice), 4),
        **{f"dice_{name}": round(value, 4) for name, value in dice.items()},
    }


def _table(rows: Sequence[Mapping[str, str]], scans: str) -> list[str]:
    """Lines of Markdown: what was measured on how many of these scans."""
    cases = len({row["case"] for row in rows})
    if "dice" not in rows[0]:
        lines = [f"Measured on {cases} {scans}, {len(rows)} pairs of views (`evaluate.json`):", ""]
        lines += ["| measure | mean |", "| --- | --- |"]
        return lines + [f"| {name.replace('_', ' ')} | {value} |" for name, value in _figures(rows).items()]
    lines = [f"Measured on {cases} {scans}, on their own grids (`evaluate.json`):", ""]
    lines += [
        "| class | annotated in | Dice | HD95, mm | missed, or found where it is not |",
        "| --- | --- | --- | --- | --- |",
    ]
    columns: dict[str, list[float]] = {"dice": [], "hd95_mm": []}
    for name, found in _by_class(rows).items():
        cells = []
        for column, digits in (("dice", 3), ("hd95_mm", 1)):
            mean = _mean(found, column) if column in found[0] else None
            columns[column] += [mean] if mean is not None else []
            cells.append("" if mean is None else f"{mean:.{digits}f}")
        missed = sum(row.get("hd95_mm") == "inf" for row in found)
        lines.append(f"| {name} | {len(found)} | {cells[0]} | {cells[1]} | {missed} |")
    means = [f"{sum(v) / len(v):.{d}f}" if v else "" for v, d in ((columns["dice"], 3), (columns["hd95_mm"], 1))]
    return [*lines, f"| mean | | **{means[0]}** | {means[1]} | |"]


def _description(record: Mapping[str, Any], stated: Mapping[str, Any], weights: Path) -> str:
    data = record.get("data", "")
    folders = ", ".join([data] if isinstance(data, str) else data)
    command = record["command"].replace("|", "\\|")
    size = f"{record.get('base_channels', '?')} channels x {record.get('num_scales', '?')} scales"
    lines = [
        f"`models/model.pt`: {size}, half precision, {weights.stat().st_size / 1e6:.1f} MB, SHA-256",
        f"`{stated['sha256']}`, {stated['license']}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| data | {folders}: {record.get('scans', '?')} scans |",
        f"| command | `{command}` |",
        f"| steps, time | {record.get('steps', '?')}, {record.get('minutes', '?')} minutes |",
        f"| commit, machine | `{record.get('commit', '?')}`, {record.get('machine', '?')} |",
    ]
    return "\n".join(lines)


def _with_block(text: str, block: str) -> str:
    """The document with the block between the comments; where there are none, below its heading or in a new section."""
    block = f"{BEGIN}\n{block}{END}"
    if BEGIN in text and END in text[text.index(BEGIN) :]:
        start = text.index(BEGIN)
        return text[:start] + block + text[text.index(END, start) + len(END) :]
    heading = re.search(r"^## Released weights *\n", text, flags=re.MULTILINE)
    if heading is None:
        return f"{text.rstrip()}\n\n## Released weights\n\n{block}\n"
    return f"{text[: heading.end()]}\n{block}\n{text[heading.end() :]}"
