"""The paper's protocols on phantoms in the layouts and with the label values of BTCV and AMOS22."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from custom_components.errors import find_input_error
from custom_components.networks import DenseSSLNetwork, save_weights

from ..public_layouts import BTCV_VALUES, PUBLIC_LAYOUTS, write_amos, write_btcv, write_phantom
from .conftest import BUNDLES, SHORT, SMALL

# segmentation bundle -> pre-training bundle and its override for the same data
PRETRAININGS = {"btcv_ct_segmentation": ("ct_dense_ssl", "btcv"), "amos_mri_segmentation": ("mri_dense_ssl", "amos")}


def items_of(bundle, configs, item_list, **settings):
    parser = ConfigParser()
    parser.read_config([BUNDLES / bundle / "configs" / f"{name}.json" for name in configs])
    parser.update(settings)
    return parser.get_parsed_content(item_list)


def cases_of(bundle, configs, item_list, **settings):
    return {item["case"] for item in items_of(bundle, configs, item_list, **settings)}


@pytest.mark.parametrize("name", list(PUBLIC_LAYOUTS))
def test_no_pretraining_sees_the_fold_that_is_tested(name, tmp_path):
    data = write_amos(tmp_path, mri=7, ct=3, unlabelled=3) if name.startswith("amos") else write_btcv(tmp_path, count=7)
    bundle, override = PRETRAININGS[name]
    folds = 5 if name.startswith("amos") else 3
    tested = []
    for fold in range(folds):
        settings = {"dataset_dir": str(data), "fold": fold}
        test = cases_of(name, ["evaluate"], "dataset#data", **settings)
        pretrain = cases_of(bundle, ["train", override], "train#dataset#data", **settings)
        held_out = cases_of(bundle, ["evaluate", override], "dataset#data", **settings)
        transferred = cases_of(bundle, ["evaluate", override], "transfer#dataset#data", **settings)
        assert test and not test & pretrain and test <= held_out and transferred == test
        tested += sorted(test)
        if name.startswith("amos"):  # of its MRI, the test images beside the labelled ones
            assert all(int(case[-4:]) >= 500 for case in pretrain)
            assert len(pretrain | held_out) == 7 + 3
    assert len(tested) == len(set(tested)) == 7


@pytest.mark.parametrize(("file", "transforms"), [("train", "preparation"), ("evaluate", "preprocessing#transforms")])
def test_all_organs_of_amos_can_be_trained(file, transforms, tmp_path):
    place = f"{transforms}#2#orig_labels"
    settings = {"dataset_dir": str(write_amos(tmp_path))}
    assert items_of("amos_mri_segmentation", [file], place, **settings) == [13, 14, 15]
    organs = items_of("amos_mri_segmentation", [file], "class_names") + ["Duodenum", "Bladder", "Prostate"]
    assert items_of("amos_mri_segmentation", [file], place, class_names=organs, **settings) == []


def test_the_papers_ct_pretraining_reads_ct_of_amos_and_flare(tmp_path):
    write_amos(tmp_path / "amos", mri=2, ct=4)
    flare = {f"Case_{number:05d}_0000" for number in range(6)}
    for seed, case in enumerate(sorted(flare)):
        path = tmp_path / "UnlabeledCase" / f"{case}.nii.gz"
        write_phantom("CT", seed, path, tmp_path / "labels" / "label.nii.gz", BTCV_VALUES)
    folders = {"amos_dir": str(tmp_path / "amos"), "dataset_dir": str(tmp_path / "UnlabeledCase")}
    pretrain = cases_of("ct_dense_ssl", ["train", "amos_flare"], "train#dataset#data", **folders)
    held_out = cases_of("ct_dense_ssl", ["evaluate", "amos_flare"], "dataset#data", **folders)
    amos = {f"amos_{number:04d}" for number in range(1, 5)}
    assert pretrain | held_out == amos | flare
    numbers = [item["scan"] for item in items_of("ct_dense_ssl", ["train", "amos_flare"], "datalist", **folders)]
    assert len(numbers) == len(set(numbers)) == len(amos | flare)
    assert held_out and not pretrain & held_out


@pytest.fixture(scope="module", params=list(PUBLIC_LAYOUTS))
def trained(request, run_bundle, tmp_path_factory):
    """Name, data and output folder of a short training from scratch on one fold."""
    name = request.param
    data = PUBLIC_LAYOUTS[name](tmp_path_factory.mktemp("data"))
    output = tmp_path_factory.mktemp("output")
    settings = {**SMALL, **SHORT, "pretrained": "none", "head_epochs": 1, "fold": 1}
    run_bundle(name, "train", dataset_dir=data, output_dir=output, **settings)
    return name, data, output


@pytest.mark.slow
def test_another_fold_in_the_same_folder_is_refused(trained, run_bundle):
    name, data, output = trained
    settings = {**SMALL, **SHORT, "pretrained": "none", "head_epochs": 1, "fold": 2}
    with pytest.raises(Exception) as failed:
        run_bundle(name, "train", dataset_dir=data, output_dir=output, **settings)
    assert "last.pt: was written by a training of other scans" in str(find_input_error(failed.value))


def test_both_bundles_have_the_same_overrides():
    first, second = (BUNDLES / name / "configs" for name in PUBLIC_LAYOUTS)
    for name in ("linear_probe", "nonlinear_probe", "from_scratch", "strong_augmentation"):
        assert (first / f"{name}.json").read_text() == (second / f"{name}.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["amos_mri_segmentation"])
def test_labels_are_transferred_between_the_scans_as_downloaded(name, run_bundle, tmp_path):
    data, (bundle, override) = PUBLIC_LAYOUTS[name](tmp_path / "data"), PRETRAININGS[name]
    settings = {**SMALL, "dataset_dir": data, "output_dir": tmp_path / "output", "split": "all"}
    network = DenseSSLNetwork(base_channels=SMALL["base_channels"], num_scales=SMALL["num_scales"])
    save_weights(network, tmp_path / "model.pt", {})
    run_bundle(bundle, "evaluate", override, **settings, weights=tmp_path / "model.pt", run_id="label_transfer")
    dice = {row["class"]: row["dice"] for row in rows_of(tmp_path / "output" / "label_transfer.csv")}
    assert len(dice) == (13 if name.startswith("btcv") else 15)
    # empty where none of the few voxels of a class was drawn, and none found
    assert any(map(float, filter(None, dice.values()))) and all(0 <= float(value or 0) <= 1 for value in dice.values())


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_each_fold_scores_other_cases_and_every_class(trained, run_bundle, tmp_path):
    name, data, output = trained
    parser = ConfigParser()
    parser.read_config(BUNDLES / name / "configs" / "train.json")
    classes, folds = parser.get()["class_names"], parser.get()["num_folds"]
    assert (len(classes), folds) == {"btcv_ct_segmentation": (13, 3), "amos_mri_segmentation": (12, 5)}[name]
    seen = []
    for fold in range(folds):
        settings = {**SMALL, "dataset_dir": data, "weights": output / "model.pt", "fold": fold}
        run_bundle(name, "evaluate", output_dir=tmp_path / str(fold), **settings)
        rows = rows_of(tmp_path / str(fold) / "metrics.csv")
        assert [row["class"] for row in rows[: len(classes)]] == classes
        seen += sorted({row["case"] for row in rows})
    assert len(seen) == len(set(seen)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["btcv_ct_segmentation"], indirect=True)
def test_few_labelled_scans_are_probed_and_the_overrides_train(trained, run_bundle, tmp_path):
    name, data, output = trained
    for override in ("linear_probe", "nonlinear_probe", "from_scratch"):
        backbone = {} if override == "from_scratch" else {"pretrained": output / "model.pt"}
        settings = {**SMALL, **SHORT, **backbone, "num_labelled": 2}
        run_bundle(name, "train", override, dataset_dir=data, output_dir=tmp_path / override, **settings)
        assert json.loads((tmp_path / override / "model.json").read_text())["scans"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["amos_mri_segmentation"], indirect=True)
def test_a_small_gpu_may_keep_fewer_activations_and_accumulate_steps(trained, run_bundle, tmp_path):
    name, data, _ = trained
    small = {**SMALL, **SHORT, "checkpointing": True, "accumulation_steps": 2}
    run_bundle(name, "train", "from_scratch", dataset_dir=data, output_dir=tmp_path, **small)
    optimizer = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["optimizer"]
    assert {int(state["step"]) for state in optimizer["state"].values()} == {2}


def test_new_scans_are_segmented_into_the_classes(trained, run_bundle, tmp_path):
    name, data, output = trained
    scan = sorted(data.rglob("img0001.nii.gz" if name.startswith("btcv") else "amos_0508.nii.gz"))[0]
    settings = {**SMALL, "dataset_dir": scan, "output_dir": tmp_path, "weights": output / "model.pt"}
    run_bundle(name, "inference", **settings)
    label = nib.load(tmp_path / scan.name.replace(".nii.gz", "_seg.nii.gz"))
    assert label.shape == nib.load(scan).shape
    assert np.asarray(label.dataobj).max() <= (13 if name.startswith("btcv") else 12)
