"""From pre-training on CT without labels to labels of new scans, on phantoms, of which some are partly annotated."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components.data import PHANTOM_CLASSES

from .conftest import CLASSES, SHORT, SMALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def partly_annotated(ct_phantoms, tmp_path_factory):
    """The CT phantoms without the label of the spleen, whose voxels are background where it is not annotated."""
    folder = tmp_path_factory.mktemp("partly_annotated")
    (folder / "imagesTr").symlink_to(ct_phantoms / "imagesTr")
    (folder / "labelsTr").mkdir()
    listing = json.loads((ct_phantoms / "dataset.json").read_text())
    for entry in listing["training"]:
        entry["annotated_labels"] = [1, 3, 4, 5, 6]
        label = nib.load(ct_phantoms / entry["label"])
        values = np.asarray(label.dataobj)
        nib.save(
            nib.Nifti1Image(np.where(values == 2, 0, values).astype(np.uint8), label.affine), folder / entry["label"]
        )
    (folder / "dataset.json").write_text(json.dumps(listing))
    return folder


@pytest.fixture(scope="module")
def ct_backbone(run_bundle, ct_phantoms, tmp_path_factory):
    output = tmp_path_factory.mktemp("ct_backbone")
    settings = {**SMALL, **SHORT, "pairs_per_scan": 2}
    run_bundle(
        "ct_dense_ssl", "train", "low_resolution", "masked", dataset_dir=ct_phantoms, output_dir=output, **settings
    )
    return output


@pytest.fixture(scope="module")
def ct_segmenter(run_bundle, partly_annotated, ct_backbone, tmp_path_factory):
    output = tmp_path_factory.mktemp("ct_segmenter")
    settings = {**SMALL, **SHORT, **CLASSES, "pretrained": ct_backbone / "model.pt", "head_epochs": 1}
    run_bundle("head_neck_ct_segmentation", "train", dataset_dir=partly_annotated, output_dir=output, **settings)
    return output


def test_several_folders_are_pretrained_on_and_the_baseline_is_an_override(run_bundle, ct_phantoms, tmp_path):
    settings = {**SMALL, **SHORT, "output_dir": tmp_path}
    folders = [str(ct_phantoms), str(ct_phantoms / "imagesTr")]
    run_bundle("ct_dense_ssl", "train", "vox2vec_baseline", dataset_dir=folders[0], **settings)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert not any(key.startswith("projection.") for key in state)
    run_bundle("ct_dense_ssl", "train", dataset_dir=folders, **{**settings, "output_dir": tmp_path / "both"})
    assert json.loads((tmp_path / "both" / "model.json").read_text())["scans"] == 10


def test_retrieval_and_features_of_a_ct_backbone(run_bundle, ct_phantoms, ct_backbone, tmp_path):
    settings = {"dataset_dir": ct_phantoms, "output_dir": tmp_path, "weights": ct_backbone / "model.pt"}
    run_bundle("ct_dense_ssl", "evaluate", "low_resolution", **settings, **SMALL, max_voxels=64)
    with open(tmp_path / "retrieval.csv", newline="") as file:
        assert all(row["case"].startswith("phantom_ct") for row in csv.DictReader(file))
    sizes = {key: SMALL[key] for key in ("spacing", "base_channels", "num_scales")}
    scan = sorted((ct_phantoms / "imagesTr").glob("*.nii.gz"))[0]
    run_bundle("ct_dense_ssl", "inference", **{**settings, "dataset_dir": scan}, **sizes, output_scale=0)
    assert nib.load(tmp_path / "phantom_ct_000_features.nii.gz").shape[-1] == 32


def test_a_class_that_is_not_annotated_is_not_trained_as_background(run_bundle, partly_annotated, tmp_path):
    """The bias of an undrawn class keeps its first value, for it has no gradient; all others move."""
    # the last network, at a rate that four steps show in half precision
    settings = {**SMALL, **SHORT, **CLASSES, "pretrained": "none", "learning_rate": 0.1}
    settings["model_selection"] = "last"
    first = {**settings, "learning_rate": 0.0, "backbone_learning_rate": 0.0, "output_dir": tmp_path / "first"}
    run_bundle("head_neck_ct_segmentation", "train", dataset_dir=partly_annotated, **first)
    run_bundle(
        "head_neck_ct_segmentation", "train", dataset_dir=partly_annotated, output_dir=tmp_path / "t", **settings
    )
    key = "head.layers.0.bias"
    before, after = (torch.load(tmp_path / f / "model.pt", weights_only=True)[key] for f in ("first", "t"))
    assert before[1] == after[1]
    assert (before != after).sum() == len(PHANTOM_CLASSES) - 1


def test_a_class_that_is_not_annotated_is_not_scored(run_bundle, partly_annotated, ct_segmenter, tmp_path):
    settings = {**SMALL, **CLASSES, "weights": ct_segmenter / "model.pt", "split": "all"}
    run_bundle(
        "head_neck_ct_segmentation",
        "evaluate",
        dataset_dir=partly_annotated,
        output_dir=tmp_path / "scores",
        **settings,
    )
    with open(tmp_path / "scores" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * len(PHANTOM_CLASSES)
    assert all((row["dice"] == "") == (row["class"] == "Spleen") for row in rows)


@pytest.mark.parametrize("override", ["linear_probe", "nonlinear_probe", "from_scratch"])
def test_every_override_trains(run_bundle, partly_annotated, ct_backbone, tmp_path, override):
    settings = {**SMALL, **SHORT, **CLASSES, "num_labelled": 2, "dataset_dir": partly_annotated}
    if override != "from_scratch":
        settings["pretrained"] = ct_backbone / "model.pt"
    run_bundle("head_neck_ct_segmentation", "train", override, output_dir=tmp_path, **settings)
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["scans"] == 2 and record["head"] == ("nonlinear" if override == "nonlinear_probe" else "linear")


def test_labels_of_new_scans_lie_on_them_and_a_picture_in_place_of_a_ct_is_told(
    command_line, ct_phantoms, ct_segmenter, tmp_path
):
    scans = tmp_path / "scans"
    scans.mkdir()
    sound = sorted((ct_phantoms / "imagesTr").glob("*.nii.gz"))[0]
    (scans / sound.name).symlink_to(sound)
    picture = nib.Nifti1Image(np.random.default_rng(0).integers(0, 256, (20, 20, 20)).astype(np.uint8), np.eye(4))
    nib.save(picture, scans / "picture.nii.gz")
    settings = {**SMALL, **CLASSES, "weights": ct_segmenter / "model.pt", "dataset_dir": scans, "output_dir": tmp_path}
    done = command_line("head_neck_ct_segmentation", "inference", **settings)
    assert done.returncode != 0 and "1 of 2 scans done" in done.stderr
    assert "picture.nii.gz: a CT in HU was expected" in done.stderr
    label, scan = nib.load(tmp_path / sound.name.replace(".nii.gz", "_seg.nii.gz")), nib.load(sound)
    assert label.shape == scan.shape and np.allclose(label.affine, scan.affine, atol=1e-3)
