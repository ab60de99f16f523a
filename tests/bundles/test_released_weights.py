"""The released weights on real scans: they do what their documents say."""

import csv
import json

import pytest

from custom_components.metrics import mean_by_class

from .conftest import BUNDLES

pytestmark = pytest.mark.slow
SEGMENTATION = "hippocampus_mri_segmentation"


def mean(path):
    values = mean_by_class(path).values()
    return sum(values) / len(values)


def test_the_released_hippocampus_network_has_the_dice_of_its_metadata(run_bundle, real_data, tmp_path):
    run_bundle(SEGMENTATION, "evaluate", dataset_dir=real_data / "Task04_Hippocampus", output_dir=tmp_path)
    stated = json.loads((BUNDLES / SEGMENTATION / "configs" / "metadata.json").read_text())["eval_metrics"]
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert len({row["case"] for row in csv.DictReader(file)}) == 40
    assert mean(tmp_path / "metrics.csv") == pytest.approx(stated["mean_dice"], abs=0.002)


def test_a_probe_of_the_released_backbone_beats_an_untrained_one_on_four_real_scans(run_bundle, real_data, tmp_path):
    data, scores = real_data / "Task04_Hippocampus", {}
    for name, weights in (("released", BUNDLES / "mri_dense_ssl" / "models" / "model.pt"), ("untrained", "none")):
        output = tmp_path / name
        settings = {"dataset_dir": data, "output_dir": output, "pretrained": weights, "cache_dir": tmp_path / "cache"}
        run_bundle(SEGMENTATION, "train", "linear_probe", **settings, num_labelled=4, max_steps=100, val_interval=9)
        run_bundle(SEGMENTATION, "evaluate", dataset_dir=data, output_dir=output, weights=output / "model.pt")
        scores[name] = mean(output / "metrics.csv")
    assert scores["released"] > 0.5 > 0.3 > scores["untrained"]
