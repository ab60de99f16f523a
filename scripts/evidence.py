"""From the scores of every case to tables and figures: those of docs/EVIDENCE.md, or that of a cases.csv of your own.

python -m scripts.evidence                                               # all of docs/EVIDENCE.md, made anew
python -m scripts.evidence out/evidence/cases.csv --reference vox2vec    # a table on the terminal
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire

from custom_components.errors import InputError
from custom_components.evidence import (
    as_list,
    figures_of,
    label_efficiency_figure,
    markdown_table,
    read_cases,
    summarise,
    with_tables,
)

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "EVIDENCE.md"


def evidence(
    *files: str, reference: str | None = None, without: str | Sequence[str] = (), figure: str | None = None
) -> None:
    """Print the table of some files of scores, in Markdown; without one, make the document's tables and figures anew.

    Args:
        files: written by scripts.label_efficiency or scripts.ablation, or of docs/evidence; taken together.
        reference: backbone that the differences are to, the same head of it; else training from scratch.
        without: classes that are left out of the means, such as "Esophagus,Larynx".
        figure: PNG or SVG to draw, Dice over the number of labelled scans; of one bundle.
    """
    if not files:
        text = DOCUMENT.read_text()
        for scores in figures_of(text, DOCUMENT.parent):
            _draw(summarise(read_cases(scores)), scores.with_suffix(".png"))
        DOCUMENT.write_text(with_tables(text, DOCUMENT.parent))
        print(f"wrote {DOCUMENT}")
        return
    rows = [row for file in files for row in read_cases(file)]
    bundles = sorted({row["bundle"] for row in rows})
    if figure is not None and len(bundles) > 1:
        raise InputError(f"figure: shows one bundle but the files have {', '.join(bundles)}; draw one for each")
    summary = summarise(rows, reference, as_list(without))
    print(markdown_table(summary, reference))
    if figure is not None:
        _draw(summary, figure)


def _draw(summary: Sequence[dict[str, Any]], path: str | Path) -> None:
    label_efficiency_figure(summary, summary[0]["bundle"]).savefig(path, dpi=150)


if __name__ == "__main__":
    try:
        fire.Fire(evidence)
    except InputError as error:
        sys.exit(f"error: {error}")
