"""The paper's protocols on phantoms in the layouts and with the label values of BTCV and AMOS22."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from ..public_layouts import PUBLIC_LAYOUTS
from .conftest import BUNDLES, SHORT, SMALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=list(PUBLIC_LAYOUTS))
def trained(request, run_bundle, tmp_path_factory):
    """Name, data and output folder of a short training from scratch on one fold."""
    name = request.param
    data = PUBLIC_LAYOUTS[name](tmp_path_factory.mktemp("data"))
    output = tmp_path_factory.mktemp("output")
    settings = {**SMALL, **SHORT, "pretrained": "none", "head_epochs": 1, "fold": 1}
    run_bundle(name, "train", dataset_dir=data, output_dir=output, **settings)
    return name, data, output


def test_another_fold_in_the_same_folder_is_refused(trained, command_line):
    name, data, output = trained
    settings = {**SMALL, **SHORT, "pretrained": "none", "head_epochs": 1, "fold": 2}
    failed = command_line(name, "train", dataset_dir=data, output_dir=output, **settings)
    assert failed.returncode != 0 and "last.pt: was written by a training with cases=" in failed.stderr


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


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


def test_few_labelled_scans_are_probed_and_the_overrides_train(trained, run_bundle, tmp_path):
    name, data, output = trained
    for override in ("linear_probe", "nonlinear_probe", "from_scratch"):
        backbone = {} if override == "from_scratch" else {"pretrained": output / "model.pt"}
        settings = {**SMALL, **SHORT, **backbone, "num_labelled": 2}
        run_bundle(name, "train", override, dataset_dir=data, output_dir=tmp_path / override, **settings)
        assert json.loads((tmp_path / override / "model.json").read_text())["scans"] == 2


def test_new_scans_are_segmented_into_the_classes(trained, run_bundle, tmp_path):
    name, data, output = trained
    scan = sorted(data.rglob("img0001.nii.gz" if name.startswith("btcv") else "amos_0508.nii.gz"))[0]
    settings = {**SMALL, "dataset_dir": scan, "output_dir": tmp_path, "weights": output / "model.pt"}
    run_bundle(name, "inference", **settings)
    label = nib.load(tmp_path / scan.name.replace(".nii.gz", "_seg.nii.gz"))
    assert label.shape == nib.load(scan).shape
    assert np.asarray(label.dataobj).max() <= (13 if name.startswith("btcv") else 12)
