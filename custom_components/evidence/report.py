"""What is written of a grid of trainings: CSV files, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from custom_components.errors import InputError
from custom_components.metrics import write_csv

from .grid import Cell
from .statistics import CASE_COLUMNS, SUMMARY_COLUMNS, case_rows, summarise


def write_results(cells: Sequence[Cell], output_dir: Path) -> list[dict[str, Any]]:
    """Write `cases.csv`, a row a training, case and class, and `summary.csv`; returns the summary's rows."""
    rows = case_rows(cells, output_dir)
    summary = summarise(rows)
    write_csv(output_dir / "cases.csv", CASE_COLUMNS, rows)
    write_csv(output_dir / "summary.csv", SUMMARY_COLUMNS, summary)
    return summary


def summary_table(summary: Sequence[dict[str, Any]]) -> str:
    """The summary as lines of text."""
    width = max([len("backbone"), *(len(row["backbone"]) for row in summary)]) + 2
    lines = [
        f"{'backbone':<{width}}{'head':<18}{'labels':>7}{'seeds':>7}{'Dice':>8}  {'95% interval':<16}"
        "difference to scratch"
    ]

    def order(row: dict[str, Any]) -> tuple[str, float, str]:
        count = row["num_labelled"]
        return row["head"], float("inf") if count == "all" else float(count), row["backbone"]

    for row in sorted(summary, key=order):
        interval = "" if row["dice_low"] is None else f"{row['dice_low']:.3f} to {row['dice_high']:.3f}"
        line = f"{row['backbone']:<{width}}{row['head']:<18}{row['num_labelled']:>7}{row['seeds']:>7}"
        line += f"{row['dice']:>8.3f}  {interval:<16}"
        if row["difference_low"] is not None:
            line += f"{row['difference']:+.3f} ({row['difference_low']:+.3f} to {row['difference_high']:+.3f}), "
            line += f"p = {row['p_value']:.2g}"
        lines.append(line)
    return "\n".join(lines)


def require_all(failed: Sequence[Cell], cells: Sequence[Cell], output_dir: Path) -> None:
    """Raise an `InputError` that names the logs of the trainings that failed, if any did."""
    if failed:
        logs = "\n".join(str(cell.folder(output_dir) / "log.txt") for cell in failed)
        raise InputError(f"{len(failed)} of {len(cells)} trainings failed, each log says why:\n{logs}")
