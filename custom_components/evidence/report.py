"""What is written of a grid of trainings: CSV files, and a table for the terminal."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from custom_components.errors import InputError
from custom_components.metrics import write_csv

from .grid import UNTRAINED, Cell, differing_recipes
from .statistics import CASE_COLUMNS, SUMMARY_COLUMNS, case_rows, read_cases, summarise

logger = logging.getLogger(__name__)


def reference_of(cells: Sequence[Cell]) -> str | None:
    """What differences are to: training from scratch (None), or the untrained backbone where nothing is fine-tuned."""
    return None if any(cell.head == "finetune" for cell in cells) else UNTRAINED


def write_results(cells: Sequence[Cell], output_dir: Path) -> list[dict[str, Any]]:
    """Write `cases.csv`, a row a training, case and class, and `summary.csv`; returns the summary's rows.

    Warns of cells whose recipes differ. Differences are to `reference_of` the cells.
    """
    for sentence in differing_recipes(cells, output_dir):
        logger.warning(sentence)
    rows = case_rows(cells, output_dir)
    summary = summarise(rows, reference_of(cells))
    write_csv(output_dir / "cases.csv", CASE_COLUMNS, rows)
    write_csv(output_dir / "summary.csv", SUMMARY_COLUMNS, summary)
    return summary


def summary_table(summary: Sequence[dict[str, Any]], reference: str | None = None) -> str:
    """The summary as lines of text; `reference` as in `markdown_table`."""
    width = max([len("backbone"), *(len(row["backbone"]) for row in summary)]) + 2
    lines = [
        f"{'backbone':<{width}}{'head':<18}{'labels':>7}{'seeds':>7}{'Dice':>8}  {'95% interval':<16}"
        f"difference to {reference or 'scratch'}"
    ]

    for row in sorted(summary, key=_order):
        interval, difference, p_value = _texts(row)
        line = f"{row['backbone']:<{width}}{row['head']:<18}{row['num_labelled']:>7}{row['seeds']:>7}"
        line += f"{row['dice']:>8.3f}  {interval:<16}"
        by_seed = f"; by seed {row['difference_by_seed']}" if row["seeds"] > 1 else ""
        lines.append(line + (f"{difference}, p = {p_value}{by_seed}" if difference else ""))
    return "\n".join(lines)


def _order(row: dict[str, Any]) -> tuple[str, float, str]:
    count = row["num_labelled"]
    return row["head"], float("inf") if count == "all" else float(count), row["backbone"]


def _texts(row: dict[str, Any]) -> tuple[str, str, str]:
    """Interval, difference with its interval, and p-value of a row of the summary; empty where it has none."""
    interval = "" if row["dice_low"] is None else f"{row['dice_low']:.3f} to {row['dice_high']:.3f}"
    if row["difference_low"] is None:
        return interval, "", ""
    difference = f"{row['difference']:+.3f} ({row['difference_low']:+.3f} to {row['difference_high']:+.3f})"
    return interval, difference, f"{row['p_value']:.2g}"


def markdown_table(summary: Sequence[dict[str, Any]], reference: str | None = None) -> str:
    """The summary as a table in Markdown.

    Args:
        summary: as `summarise` gives it, with the same reference.
        reference: what the differences are to; None: training from scratch.
    """
    lines = [
        "| head | labelled scans | backbone | seeds | mean Dice | 95 % interval | "
        f"difference to {reference or 'scratch'} | p | seed by seed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(summary, key=_order):
        about = row["head"], row["num_labelled"], row["backbone"], row["seeds"], f"{row['dice']:.3f}"
        values = (*about, *_texts(row), row["difference_by_seed"] or "")
        lines.append("| " + " | ".join(str(value) for value in values) + " |")
    return "\n".join(lines)


BLOCK = re.compile(
    r"<!-- (?P<title>(?P<file>[\w./-]+\.csv) against (?P<reference>[^:>]+?)(?: without (?P<without>[^:>]+))?)"
    r": begin -->\n"
    r".*?<!-- end -->",
    re.DOTALL,
)


def with_tables(document: str, folder: Path) -> str:
    """A document with its tables made anew from the published scores of every case.

    A table stands between `<!-- FILE.csv against REFERENCE: begin -->` and `<!-- end -->`, each on a line of its own;
    `REFERENCE without CLASS, CLASS` leaves classes out.

    Args:
        document: Markdown.
        folder: that the names of the files are relative to.

    Raises:
        InputError: a file is missing or no `cases.csv`.
    """

    def block(match: re.Match[str]) -> str:
        reference = None if match["reference"] == "scratch" else match["reference"]
        without = match["without"].split(", ") if match["without"] else ()
        table = markdown_table(summarise(read_cases(folder / match["file"]), reference, without), reference)
        return f"<!-- {match['title']}: begin -->\n{table}\n<!-- end -->"

    return BLOCK.sub(block, document)


PICTURE = re.compile(r"!\[[^]]*]\((?P<name>[\w./-]+)\.png\)")


def figures_of(document: str, folder: Path) -> list[Path]:
    """The files of scores that a document's figures are drawn of: NAME.csv of every picture NAME.png.

    Args:
        document: Markdown.
        folder: that the names of the pictures are relative to.
    """
    return [folder / f"{match['name']}.csv" for match in PICTURE.finditer(document)]


def require_all(failed: Sequence[Cell], cells: Sequence[Cell], output_dir: Path) -> None:
    """Raise an `InputError` that names the logs of the trainings that failed, if any did."""
    if failed:
        logs = "\n".join(str(cell.folder(output_dir) / "log.txt") for cell in failed)
        raise InputError(f"{len(failed)} of {len(cells)} trainings failed, each log says why:\n{logs}")
