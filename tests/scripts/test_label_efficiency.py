"""Options of the grids that cannot be meant, told before anything is trained."""

import subprocess
import sys

import pytest

from custom_components.data import PHANTOM_CLASSES
from custom_components.errors import InputError
from custom_components.evidence import scored_scans
from scripts.ablation import ablation
from scripts.label_efficiency import BUNDLES, label_efficiency


@pytest.mark.parametrize("grid", [label_efficiency, ablation])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 0.1}, "--learning_rat: no such setting in .*; did you mean --learning_rate"),
        ({"seed": 3}, "--seed: is another one in every training of a grid; give --seeds"),
        ({"pretrained": "model.pt"}, "--pretrained: .*; give --backbones"),
    ],
)
def test_an_option_that_no_config_has_is_refused(grid, settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        grid(output_dir=str(tmp_path / "out"), dataset_dir=str(tmp_path), **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 300}, "steps: names were expected, as in .* but 300 came"),
        ({"jobs": 0}, "jobs: must be at least 1"),
        ({"bundle": "ct_dense_ssl"}, "ct_dense_ssl: is no segmentation"),
    ],
)
@pytest.mark.parametrize("grid", [label_efficiency, ablation])
def test_what_cannot_be_meant_is_told_before_anything_is_trained(grid, settings, message, mri_phantoms, tmp_path):
    classes = {"class_names": PHANTOM_CLASSES} if "bundle" not in settings else {}
    options = {"backbones": {}, "num_labelled": 1} if grid is label_efficiency else {"num_labelled": 1}
    with pytest.raises(InputError, match=message):
        grid(output_dir=str(tmp_path / "out"), dataset_dir=str(mri_phantoms), **options, **classes, **settings)
    assert not list(tmp_path.glob("out/*/**/log.txt"))


def test_options_that_give_names_say_so(tmp_path):
    for option in ("backbones", "backbone_settings"):
        with pytest.raises(InputError, match=f"{option}: names were expected"):
            label_efficiency(output_dir=str(tmp_path / "out"), dataset_dir=str(tmp_path), **{option: "model.pt"})
    with pytest.raises(InputError, match="mri_dense: is no bundle of .*; name one such as mri_dense_ssl"):
        ablation(output_dir=str(tmp_path / "out"), dataset_dir=str(tmp_path), pretraining="mri_dense")


def test_a_setting_of_the_training_alone_does_not_stop_the_look_at_the_scans_that_are_scored(mri_phantoms):
    settings = {"dataset_dir": str(mri_phantoms), "class_names": PHANTOM_CLASSES, "optimizer#weight_decay": 0.1}
    assert len(scored_scans(BUNDLES / "hippocampus_mri_segmentation", settings)) == 1


def test_a_wrong_folder_is_told_in_a_sentence(tmp_path):
    command = [
        sys.executable,
        "-m",
        "scripts.label_efficiency",
        "--output_dir",
        str(tmp_path),
        "--dataset_dir",
        "/nowhere",
    ]
    done = subprocess.run(command, cwd=BUNDLES.parent, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: /nowhere: no such folder; check dataset_dir"


def test_a_setting_of_one_backbone_is_looked_at_too(tmp_path):
    with pytest.raises(InputError, match="--intensity_rang"):
        label_efficiency(
            output_dir=str(tmp_path / "out"),
            dataset_dir=str(tmp_path),
            bundle="head_neck_ct_segmentation",
            backbone_settings={"vox2vec": {"intensity_rang": [0, 1]}},
        )
