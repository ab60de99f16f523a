"""What each improvement adds to the vox2vec baseline: pre-trainings of one budget, probed and fine-tuned alike.

python -m scripts.ablation --output_dir out/ablation --dataset_dir data/Task04_Hippocampus --max_steps 500
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser

from custom_components.errors import InputError, report_plainly
from custom_components.evidence import (
    ROWS,
    UNTRAINED,
    as_counts,
    as_list,
    check_heads,
    check_settings,
    intensities_of_rows,
    make_cells,
    pretrain_rows,
    reference_of,
    require_all,
    require_configs,
    run_cells,
    scored_scans,
    summary_table,
    training_settings,
    write_results,
)

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"


def ablation(
    output_dir: str,
    dataset_dir: str,
    pretraining: str = "mri_dense_ssl",
    bundle: str = "hippocampus_mri_segmentation",
    overrides: str | Sequence[str] = (),
    pretraining_data: str | Sequence[str] | None = None,
    max_steps: int = 500,
    rows: str | Sequence[str] = tuple(ROWS),
    num_labelled: int | str | Sequence[int | str] = 4,
    heads: str | Sequence[str] = ("linear", "finetune"),
    seeds: int | Sequence[int] = 0,
    steps: Mapping[str, int] | None = None,
    training_overrides: str | Sequence[str] = (),
    jobs: int = 1,
    **settings: Any,
) -> None:
    """Pre-train the paper's rows, probe and fine-tune each; go on where it was stopped.

    The rows: the vox2vec baseline; the baseline with each of the local augmentations, the balanced pyramid and the
    restoration; all three; and an untrained backbone beside them. Writes cases.csv and summary.csv as
    `scripts.label_efficiency` does; pre-trainings are under pretraining/, the others under runs/.

    Args:
        output_dir: folder for everything.
        dataset_dir: labelled scans of the segmentation bundle.
        pretraining: pre-training bundle.
        bundle: segmentation bundle.
        overrides: configs of the pre-training bundle to merge, such as low_resolution.
        pretraining_data: scans to pre-train on; else dataset_dir.
        max_steps: steps of each pre-training.
        rows: of vox2vec, local_augmentations, balanced, restoration and all_three.
        num_labelled, heads, seeds, steps, training_overrides, jobs: as in `scripts.label_efficiency`.
        settings: overrides for all trainings and evaluations, such as --base_channels 8, the pre-trainings among them:
            --rotate_range would turn their views too.
    """
    output, folder = Path(str(output_dir)), BUNDLES / bundle
    shared = {**settings, "cache_dir": output / "cache"}
    scans = {"dataset_dir": pretraining_data or dataset_dir, "max_steps": max_steps}
    # what is wrong is told before the pre-trainings, which take hours
    if not (folder / "configs" / "train.json").is_file() or not bundle.endswith("_segmentation"):
        raise InputError(f"{bundle}: is no segmentation of {BUNDLES}; name one such as hippocampus_mri_segmentation")
    if not (BUNDLES / pretraining / "configs" / "train.json").is_file():
        raise InputError(f"{pretraining}: is no bundle of {BUNDLES}; name one such as mri_dense_ssl")
    if jobs < 1:
        raise InputError(f"jobs: must be at least 1 but is {jobs}")
    check_heads(as_list(heads))
    merged = as_list(training_overrides)
    require_configs(folder, merged)
    check_settings(folder, settings, [BUNDLES / pretraining / "configs" / "train.json"])
    training = training_settings(as_list(heads), steps, output / "cache")
    counts, subsets = as_counts(num_labelled), [int(seed) for seed in as_list(seeds)]
    common = {"dataset_dir": dataset_dir, **settings}
    held_out = scored_scans(folder, common)
    # the pre-trainings hold out the scans that the segmentations are scored on
    config = ConfigParser.load_config_file(folder / "configs" / "train.json")
    scans.update({key: config[key] for key in ("num_folds", "fold") if key in config and key not in settings})
    files = pretrain_rows(BUNDLES / pretraining, output, {**shared, **scans}, as_list(overrides), as_list(rows))
    backbones = {UNTRAINED: None, **files}
    intensities = intensities_of_rows(BUNDLES / pretraining, as_list(rows))
    cells = make_cells(folder, backbones, counts, as_list(heads), subsets, intensities, merged)
    failed = run_cells(cells, output, common, training, jobs, held_out)
    print(summary_table(write_results(cells, output), reference_of(cells)))
    require_all(failed, cells, output)


if __name__ == "__main__":
    report_plainly()
    fire.Fire(ablation)
