import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from custom_components import load_backbone
from custom_components.data import PHANTOM_CLASSES

from .conftest import SHORT, SMALL

pytestmark = pytest.mark.slow
BUNDLE = "mri_dense_ssl"


def test_pretraining_writes_released_weights_with_their_provenance(pretrained):
    state = torch.load(pretrained / "model.pt", weights_only=True)
    assert any(key.startswith("projection.") for key in state) and any(key.startswith("restoration.") for key in state)
    record = json.loads((pretrained / "model.json").read_text())
    assert record["steps"] == 4 and record["scans"] == 5
    backbone = load_backbone(pretrained / "model.pt")
    assert (backbone.base_channels, backbone.num_scales) == (4, 3)


def test_tensorboard_has_losses_rate_validation_and_pictures(pretrained):
    events = EventAccumulator(str(pretrained / "tensorboard"))
    events.Reload()
    assert {"loss", "contrastive", "restoration", "learning_rate", "val_retrieval"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["views/original_augmented_restored"]


def test_a_training_goes_on_where_it_was_stopped(run_bundle, mri_phantoms, pretrained, tmp_path, caplog):
    settings = {**SMALL, **SHORT, "dataset_dir": mri_phantoms, "output_dir": tmp_path}
    run_bundle(BUNDLE, "train", **settings)
    first = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    run_bundle(BUNDLE, "train", **{**settings, "max_steps": 8, "num_workers": 2})
    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert (first["trainer"]["iteration"], last["trainer"]["iteration"]) == (4, 8)
    key = next(iter(first["optimizer"]["state"]))
    assert last["optimizer"]["state"][key]["step"] == 8
    assert json.loads((tmp_path / "model.json").read_text())["steps"] == 8


def test_continuing_from_a_checkpoint_starts_with_its_network_and_optimiser(
    run_bundle, mri_phantoms, pretrained, tmp_path
):
    run_bundle(
        BUNDLE,
        "train",
        dataset_dir=mri_phantoms,
        output_dir=tmp_path,
        pretrained=pretrained / "pretraining.pt",
        learning_rate=0.0,
        **{**SMALL, **SHORT, "val_interval": 0},
    )
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "loss" in events.Tags()["scalars"] and "val_retrieval" not in events.Tags()["scalars"]
    assert events.Tags()["images"] == []
    before, after = (torch.load(folder / "model.pt", weights_only=True) for folder in (pretrained, tmp_path))
    assert all(torch.equal(after[key], before[key]) for key in before if key.endswith("weight"))
    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert last["optimizer"]["state"][0]["step"] == 8  # 4 there and 4 here
    assert json.loads((tmp_path / "pretraining.json").read_text())["pretrained"].endswith("pretraining.pt")


@pytest.mark.parametrize("override", ["vox2vec_baseline", "paper"])
def test_every_override_trains(run_bundle, mri_phantoms, tmp_path, override):
    settings = {**SMALL, **SHORT, "pairs_per_scan": 2}
    run_bundle(BUNDLE, "train", override, dataset_dir=mri_phantoms, output_dir=tmp_path, **settings)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert any(key.startswith("projection.") for key in state) == (override == "paper")


@pytest.mark.parametrize(
    "option",
    [
        "augment_on_device",
        "checkpointing",
        pytest.param("compile", marks=pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")),
    ],
)
def test_every_option_trains_a_network_of_the_same_form(run_bundle, mri_phantoms, pretrained, tmp_path, option):
    run_bundle(BUNDLE, "train", dataset_dir=mri_phantoms, output_dir=tmp_path, **SMALL, **SHORT, **{option: True})
    expected, state = (torch.load(folder / "model.pt", weights_only=True) for folder in (pretrained, tmp_path))
    assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in expected.items()}
    assert all(torch.isfinite(value.float()).all() for value in state.values())


def test_a_pretraining_on_turned_views_has_its_record(run_bundle, mri_phantoms, tmp_path):
    turned = {"rotate_range": 0.3, "scale_range": 0.2, "bezier_probability": 0.0, "exclude_within": 10.0}
    run_bundle(BUNDLE, "train", dataset_dir=mri_phantoms, output_dir=tmp_path, **SMALL, **SHORT, **turned)
    record = json.loads((tmp_path / "model.json").read_text())
    assert [record[key] for key in ("rotate_range", "scale_range", "bezier_probability")] == [0.3, 0.2, 0.0]
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.isfinite(value.float()).all() for value in state.values())


def test_accumulated_steps_are_fewer_steps_of_the_optimiser(run_bundle, mri_phantoms, tmp_path):
    settings = {**SMALL, **SHORT, "accumulation_steps": 2}
    run_bundle(BUNDLE, "train", dataset_dir=mri_phantoms, output_dir=tmp_path, **settings)
    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert last["trainer"]["iteration"] == 4 and last["optimizer"]["state"][0]["step"] == 2


def test_evaluation_writes_the_retrieval_of_every_pair(run_bundle, mri_phantoms, pretrained, tmp_path):
    settings = {**SMALL, "dataset_dir": mri_phantoms, "output_dir": tmp_path, "weights": pretrained / "model.pt"}
    run_bundle(BUNDLE, "evaluate", **settings, split="all", max_voxels=64, pairs_per_scan=2)
    with open(tmp_path / "retrieval.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert all(0 <= float(row["retrieved_within_1"]) <= 1 and float(row["restoration_error"]) >= 0 for row in rows)


def test_features_are_written_on_the_resampled_grid_of_the_scan(run_bundle, mri_phantoms, pretrained, tmp_path):
    settings = {key: SMALL[key] for key in ("spacing", "base_channels", "num_scales")}
    scan = sorted((mri_phantoms / "imagesTr").glob("*.nii.gz"))[0]
    weights = pretrained / "model.pt"
    run_bundle(
        BUNDLE, "inference", dataset_dir=scan, output_dir=tmp_path, weights=weights, roi_size=[16] * 3, **settings
    )
    features = nib.load(tmp_path / scan.name.replace(".nii.gz", "_features.nii.gz"))
    source = nib.load(scan)
    assert features.shape[3] == 32 * 3
    assert np.allclose(features.header.get_zooms()[:3], 8)
    corners = [
        nib.affines.apply_affine(image.affine, (np.array(image.shape[:3]) - 1) / 2) for image in (source, features)
    ]
    assert np.abs(corners[0] - corners[1]).max() <= 4  # the same centre to half a voxel of 8 mm
    assert np.isfinite(np.asarray(features.dataobj)).all()


def test_label_transfer_tells_the_dice_of_every_class_between_patients(run_bundle, mri_phantoms, pretrained, tmp_path):
    settings = {**SMALL, "dataset_dir": mri_phantoms, "output_dir": tmp_path, "weights": pretrained / "model.pt"}
    run_bundle(BUNDLE, "evaluate", **settings, split="all", sources=2, run_id="label_transfer")
    with open(tmp_path / "label_transfer.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 2 * len(PHANTOM_CLASSES)
    assert all(row["case"] != row["source"] and 0 <= float(row["dice"]) <= 1 for row in rows)
    assert not (tmp_path / "retrieval.csv").exists()
