"""From the scores of every case to tables: those of docs/EVIDENCE.md, or that of a cases.csv of your own.

python -m scripts.evidence                                               # the tables of docs/EVIDENCE.md, made anew
python -m scripts.evidence out/evidence/cases.csv --reference vox2vec    # a table on the terminal
"""

from __future__ import annotations

import sys
from pathlib import Path

import fire

from custom_components.errors import InputError
from custom_components.evidence import (
    label_efficiency_figure,
    markdown_table,
    read_cases,
    summarise,
    with_tables,
)

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "EVIDENCE.md"


def evidence(*files: str, reference: str | None = None, figure: str | None = None) -> None:
    """Print the table of some files of scores, in Markdown; without one, rewrite the document's tables.

    Args:
        files: written by scripts.label_efficiency or scripts.ablation, or of docs/evidence; taken together.
        reference: backbone that the differences are to, the same head of it; else training from scratch.
        figure: PNG or SVG to draw, Dice over the number of labelled scans; of one bundle.
    """
    if not files:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), DOCUMENT.parent))
        print(f"wrote {DOCUMENT}")
        return
    rows = [row for file in files for row in read_cases(file)]
    bundles = sorted({row["bundle"] for row in rows})
    if figure is not None and len(bundles) > 1:
        raise InputError(f"figure: shows one bundle but the files have {', '.join(bundles)}; draw one for each")
    summary = summarise(rows, reference)
    print(markdown_table(summary, reference))
    if figure is not None:
        label_efficiency_figure(summary, bundles[0]).savefig(figure, dpi=150)


if __name__ == "__main__":
    try:
        fire.Fire(evidence)
    except InputError as error:
        sys.exit(f"error: {error}")
