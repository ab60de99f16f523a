"""Is a backbone worth its labels? Trainings over backbones, heads and label counts, their statistics and figures."""

from .figures import label_efficiency_figure
from .grid import HEADS, UNTRAINED, Cell, make_cells, run_cells
from .statistics import CASE_COLUMNS, SUMMARY_COLUMNS, case_rows, summarise

__all__ = [
    "CASE_COLUMNS",
    "Cell",
    "HEADS",
    "SUMMARY_COLUMNS",
    "UNTRAINED",
    "case_rows",
    "label_efficiency_figure",
    "make_cells",
    "run_cells",
    "summarise",
]
