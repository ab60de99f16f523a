"""What a backbone is worth: Dice over the number of labelled scans, against training from scratch.

python -m scripts.label_efficiency --output_dir out/evidence --dataset_dir data/Task04_Hippocampus
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser

from custom_components.delivery import file_digest
from custom_components.errors import InputError, report_plainly
from custom_components.evidence import (
    UNTRAINED,
    as_counts,
    as_list,
    check_settings,
    label_efficiency_figure,
    make_cells,
    reference_of,
    require_all,
    require_mapping,
    run_cells,
    scored_scans,
    summary_table,
    training_settings,
    warn_of_seen_by_backbones,
    write_results,
)

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
# folder of $DENSE_SSL_DATA that a bundle is for
DATA = {"hippocampus_mri_segmentation": "Task04_Hippocampus", "head_neck_ct_segmentation": "OpenKBP"}


def label_efficiency(
    output_dir: str,
    dataset_dir: str | None = None,
    bundle: str = "hippocampus_mri_segmentation",
    backbones: Mapping[str, str] | None = None,
    num_labelled: Sequence[int | str] = (1, 2, 4, 8, "all"),
    heads: Sequence[str] = ("linear", "finetune"),
    seeds: Sequence[int] = (0, 1, 2),
    steps: Mapping[str, int] | None = None,
    backbone_settings: Mapping[str, Mapping[str, Any]] | None = None,
    training_overrides: str | Sequence[str] = (),
    jobs: int = 1,
    **settings: Any,
) -> None:
    """Train and score every backbone with every head, number of labelled scans and seed; go on where it was stopped.

    Writes cases.csv (a row a training, case and class), summary.csv (means, 95% intervals, differences to scratch, or
    to the untrained backbone where nothing is fine-tuned), label_efficiency.png and .svg; the trainings themselves are
    under runs/.

    Args:
        output_dir: folder for everything.
        dataset_dir: labelled scans; else the bundle's folder in $DENSE_SSL_DATA.
        bundle: segmentation bundle.
        backbones: name -> weight file, such as "{'vox2vec': 'out/vox2vec/model.pt'}"; they come beside the released one
            and the untrained one.
        num_labelled: numbers of labelled scans; "all" for every one.
        heads: of linear (fitted to vectors of the frozen backbone, in seconds), linear_augmented and nonlinear (trained
            on it with augmentation) and finetune. Untrained and fine-tuned is training from scratch.
        seeds: each is another subset of labelled scans and another training.
        steps: head that is trained -> steps, such as "{'finetune': 600}"; else those of the bundle's configs.
        backbone_settings: overrides for one backbone, where it was pre-trained on other intensities, such as
            "{'vox2vec': {'intensity_range': [-1350, 1000]}}".
        training_overrides: configs of the bundle to merge where a head is trained, such as strong_augmentation.
        jobs: trainings at a time.
        settings: overrides for all trainings and evaluations, such as --base_channels 8.
    """
    output, folder = Path(str(output_dir)), BUNDLES / bundle
    require_mapping("backbones", backbones, "{'mine': 'out/pretrain/model.pt'}")
    require_mapping("backbone_settings", backbone_settings, "{'vox2vec': {'intensity_range': [-1350, 1000]}}")
    if not (folder / "configs" / "train.json").is_file() or not bundle.endswith("_segmentation"):
        raise InputError(f"{bundle}: is no segmentation of {BUNDLES}; name one such as hippocampus_mri_segmentation")
    if dataset_dir is None:
        root = os.environ.get("DENSE_SSL_DATA")
        if root is None or bundle not in DATA:
            raise InputError("dataset_dir: which scans? Pass --dataset_dir, or set DENSE_SSL_DATA to the data's folder")
        dataset_dir = str(Path(root) / DATA[bundle])
    files: dict[str, str | None] = {UNTRAINED: None, **(backbones or {})}
    released = _released_backbone(folder)
    if released.is_file() and "released" not in files:
        same = [
            name
            for name, file in files.items()
            if file and Path(file).is_file() and file_digest(Path(file)) == file_digest(released)
        ]
        if same:
            print(f"{same[0]} is the released backbone, which is not trained a second time")
        else:
            files["released"] = str(released)
    check_settings(folder, [*settings, *(name for own in (backbone_settings or {}).values() for name in own)])
    counts = as_counts(num_labelled)
    subsets, merged = [int(seed) for seed in as_list(seeds)], as_list(training_overrides)
    cells = make_cells(folder, files, counts, as_list(heads), subsets, backbone_settings, merged)
    common = {"dataset_dir": dataset_dir, **settings}
    training = training_settings(as_list(heads), steps, output / "cache")
    held_out = scored_scans(folder, common)
    warn_of_seen_by_backbones(cells, held_out)
    failed = run_cells(cells, output, common, training, jobs, held_out)
    summary = write_results(cells, output)
    if summary:
        figure = label_efficiency_figure(summary, bundle)
        for suffix in ("png", "svg"):
            figure.savefig(output / f"label_efficiency.{suffix}", dpi=150)
    print(summary_table(summary, reference_of(cells)))
    require_all(failed, cells, output)


def _released_backbone(folder: Path) -> Path:
    """The weights that the bundle's training starts from by default."""
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "train.json")
    parser["bundle_root"] = str(folder)
    return Path(parser.get_parsed_content("pretrained"))


if __name__ == "__main__":
    report_plainly()
    fire.Fire(label_efficiency)
