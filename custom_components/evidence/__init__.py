"""Is a backbone worth its labels? Trainings over backbones, heads and label counts, their statistics and figures."""

from .ablation import ROWS, Row, intensities_of_rows, pretrain_rows
from .figures import label_efficiency_figure
from .grid import (
    HEADS,
    UNTRAINED,
    Cell,
    as_counts,
    as_list,
    bundle_command,
    check_heads,
    check_settings,
    make_cells,
    require_configs,
    run_cells,
    scored_scans,
    training_settings,
    warn_of_seen_by_backbones,
)
from .report import (
    figures_of,
    markdown_table,
    reference_of,
    require_all,
    summary_table,
    with_tables,
    write_results,
)
from .statistics import CASE_COLUMNS, SUMMARY_COLUMNS, case_rows, read_cases, summarise

__all__ = [
    "CASE_COLUMNS",
    "Cell",
    "HEADS",
    "ROWS",
    "Row",
    "SUMMARY_COLUMNS",
    "UNTRAINED",
    "as_counts",
    "as_list",
    "bundle_command",
    "case_rows",
    "check_heads",
    "check_settings",
    "figures_of",
    "intensities_of_rows",
    "label_efficiency_figure",
    "make_cells",
    "markdown_table",
    "pretrain_rows",
    "read_cases",
    "reference_of",
    "require_all",
    "require_configs",
    "run_cells",
    "scored_scans",
    "summarise",
    "summary_table",
    "training_settings",
    "warn_of_seen_by_backbones",
    "with_tables",
    "write_results",
]
