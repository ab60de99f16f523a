"""The released weights on real scans: they do what their documents say."""

import csv
import json
import math

import pytest

from custom_components.data import read_datalist, split_datalist
from custom_components.evidence import read_cases, summarise
from custom_components.metrics import mean_by_class

from .conftest import BUNDLES

SEGMENTATION = "hippocampus_mri_segmentation"
HEAD_NECK = "head_neck_ct_segmentation"


def mean(path):
    values = mean_by_class(path).values()
    return sum(values) / len(values)


@pytest.mark.slow
def test_the_released_hippocampus_network_has_the_dice_of_its_metadata(run_bundle, real_data, tmp_path):
    run_bundle(SEGMENTATION, "evaluate", dataset_dir=real_data / "Task04_Hippocampus", output_dir=tmp_path)
    stated = json.loads((BUNDLES / SEGMENTATION / "configs" / "metadata.json").read_text())["eval_metrics"]
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert len({row["case"] for row in csv.DictReader(file)}) == 40
    assert mean(tmp_path / "metrics.csv") == pytest.approx(stated["mean_dice"], abs=0.002)


@pytest.mark.slow
def test_a_probe_of_the_released_backbone_has_the_dice_of_the_evidence_on_four_real_scans(
    run_bundle, real_data, tmp_path
):
    """An untrained one has 0.56."""
    data = real_data / "Task04_Hippocampus"
    run_bundle(SEGMENTATION, "train", run_id="quick_probe", dataset_dir=data, output_dir=tmp_path, num_labelled=4)
    run_bundle(SEGMENTATION, "evaluate", dataset_dir=data, output_dir=tmp_path, weights=tmp_path / "model.pt")
    published = read_cases(BUNDLES.parent / "docs" / "evidence" / "hippocampus_linear.csv")
    cell = {"backbone": "released", "head": "linear", "num_labelled": "4", "seed": 0}
    (stated,) = summarise([row for row in published if all(row[key] == value for key, value in cell.items())])
    assert mean(tmp_path / "metrics.csv") == pytest.approx(stated["dice"], abs=0.015)


@pytest.fixture
def some_held_out_scans(real_data, tmp_path):
    """Three of the held-out head-and-neck scans as a data set of their own: all of them would take minutes."""
    folder = real_data / "OpenKBP"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    content = json.loads((folder / "dataset.json").read_text())
    test = {item["case"] for item in split_datalist(read_datalist(folder), "test")}
    entries = [entry for entry in content["training"] if entry["image"].split("/")[-1].split(".")[0] in test][:3]
    for entry in entries:
        entry.update(image=str(folder / entry["image"]), label=str(folder / entry["label"]))
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "dataset.json").write_text(json.dumps({**content, "training": entries}))
    return tmp_path / "scans"


@pytest.mark.slow
def test_the_released_head_and_neck_network_has_the_dice_of_its_documents(run_bundle, some_held_out_scans, tmp_path):
    run_bundle(HEAD_NECK, "evaluate", dataset_dir=some_held_out_scans, output_dir=tmp_path / "out", split="all")

    def dice(path):
        with open(path, newline="") as file:
            return {(row["case"], row["class"]): float(row["dice"]) for row in csv.DictReader(file) if row["dice"]}

    found, stated = dice(tmp_path / "out" / "metrics.csv"), dice(BUNDLES / HEAD_NECK / "docs" / "metrics.csv")
    assert len({case for case, _ in found}) == 3
    differences = [found[key] - stated[key] for key in found]
    assert len(differences) > 10 and max(map(abs, differences)) < 0.02
    assert math.fsum(differences) / len(differences) == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize("name", [SEGMENTATION, HEAD_NECK])
def test_the_figures_of_the_metadata_are_those_of_the_scores_beside_it(name):
    path = BUNDLES / name / "docs" / "metrics.csv"
    stated = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())["eval_metrics"]
    means = mean_by_class(path)
    assert stated["mean_dice"] == pytest.approx(mean(path), abs=1e-3)
    assert {key: stated[f"dice_{key}"] for key in means} == pytest.approx(means, abs=1e-3)
