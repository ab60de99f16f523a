"""The rows of the paper's ablation: each a pre-training from the bundle's own configs, all of one budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from tqdm import tqdm

from custom_components.errors import InputError

from .grid import bundle_command, require_configs, require_same, run_logged

BASELINE = "vox2vec_baseline"


@dataclass(frozen=True)
class Row:
    """A pre-training.

    Args:
        baseline: whether it is the vox2vec baseline with what `settings` add, or the bundle's method without what they
            take away. Intensities and augmentations are the baseline's or the method's together.
        settings: overrides of the configs.
    """

    baseline: bool
    settings: Mapping[str, Any] = field(default_factory=dict)


# arXiv 2401.06473, table 1
ROWS = {
    "vox2vec": Row(True),
    "local_augmentations": Row(False, {"balanced": False, "restoration_weight": 0}),
    "balanced": Row(True, {"balanced": True}),
    "restoration": Row(True, {"restoration_weight": 10}),
    "all_three": Row(False),
}


def intensities_of_rows(bundle: Path, rows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the rows with the baseline's intensities need in a segmentation, where the baseline has its own.

    Args:
        bundle: folder of the pre-training bundle.
        rows: names of `ROWS`.
    """
    baseline = ConfigParser.load_config_file(bundle / "configs" / f"{BASELINE}.json")
    own = {key: value for key, value in baseline.items() if key.startswith("intensity_")}
    return {name: own for name in rows if ROWS[name].baseline and own}


def pretrain_rows(
    bundle: Path,
    output_dir: Path,
    settings: Mapping[str, Any],
    overrides: Sequence[str] = (),
    rows: Sequence[str] = tuple(ROWS),
) -> dict[str, str]:
    """Pre-train each row that is not there yet; one that was stopped goes on.

    Args:
        bundle: folder of the pre-training bundle.
        output_dir: each row goes to `output_dir/pretraining/NAME`, with its output in `log.txt`.
        settings: overrides for all rows, such as dataset_dir and max_steps.
        overrides: names of configs to merge on `train.json`, such as "low_resolution".
        rows: names of `ROWS`.

    Returns:
        Name of the row -> its weight file.

    Raises:
        InputError: an unknown row or override, a pre-training that failed, or one with other settings in its folder.
    """
    unknown = sorted(set(rows) - set(ROWS))
    if unknown:
        raise InputError(f"rows: must be of {', '.join(ROWS)} but {', '.join(unknown)} came")
    require_configs(bundle, ("train", BASELINE, *overrides))
    files = {name: str(output_dir / "pretraining" / name / "model.pt") for name in rows}
    made_of = {key: value for key, value in settings.items() if key != "cache_dir"}
    for file in files.values():
        require_same(Path(file).parent, {"overrides": list(overrides), "settings": made_of})
    for name in tqdm(rows, unit="pre-training"):
        folder, row = output_dir / "pretraining" / name, ROWS[name]
        if Path(files[name]).is_file():
            continue
        configs = ["train", *overrides, *([BASELINE] if row.baseline else [])]
        command = bundle_command(bundle, configs, folder, {**settings, **row.settings})
        if not run_logged([command], folder):
            raise InputError(f"{folder / 'log.txt'}: the pre-training of {name} failed; its end says why")
    return files
