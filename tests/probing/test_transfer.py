import csv

import pytest
import torch
from monai.data import Dataset

from custom_components.errors import InputError
from custom_components.networks import DenseSSLNetwork
from custom_components.probing import LabelTransfer

NAMES = ["One", "Two"]


def scan(case, seed, annotated=(1.0, 1.0), body=None):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 8, 9, 10, generator=generator)
    label = torch.randint(0, 3, (1, 8, 9, 10), generator=generator)
    inside = torch.ones_like(label) if body is None else body
    return {"case": case, "image": image, "label": label, "body": inside, "annotated": torch.tensor(annotated)}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return DenseSSLNetwork(base_channels=8, num_scales=2, projection_channels=16, embedding_channels=64)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_labels_come_from_the_nearest_embedding_of_the_other_patient(network, tmp_path):
    scans = [scan("a", 1), scan("b", 2)]
    means = LabelTransfer(network, Dataset(scans), NAMES, tmp_path / "rows.csv").run()
    grid = torch.cartesian_prod(*(torch.arange(size) for size in (8, 9, 10)))
    with torch.no_grad():
        first, second = (network.eval()(item["image"][None], grid[None])[0][0] for item in scans)
    labels = [item["label"].flatten() for item in scans]
    for name, value in zip(NAMES, (1, 2)):
        expected = []
        for query, key, truth, given in ((first, second, *labels), (second, first, *labels[::-1])):
            found = given[torch.cdist(query.double(), key.double()).argmin(1)] == value
            expected.append(2 * float((found & (truth == value)).sum()) / float(found.sum() + (truth == value).sum()))
        assert means[name] == pytest.approx(sum(expected) / 2, abs=0.01)  # 0.01: ties of float32


def test_a_patient_with_the_same_scan_gives_every_label(network, tmp_path):
    scans = [scan("a", 1), {**scan("b", 1), "case": "b"}]
    assert LabelTransfer(network, Dataset(scans), NAMES, tmp_path / "rows.csv").run() == {"One": 1.0, "Two": 1.0}


def test_only_voxels_of_the_body_are_drawn(network, tmp_path):
    body = torch.zeros(1, 8, 9, 10, dtype=torch.long)
    body[0, 2:5] = 1
    transfer = LabelTransfer(
        network, Dataset([scan("a", 1, body=body), scan("b", 2, body=body)]), NAMES, tmp_path / "rows.csv"
    )
    assert len(transfer._voxels(0)["labels"]) == 3 * 9 * 10


def test_a_class_that_one_of_the_two_lacks_is_not_scored(network, tmp_path):
    scans = [scan("a", 1), scan("b", 2, (1.0, 0.0)), scan("c", 3)]
    means = LabelTransfer(network, Dataset(scans), NAMES, tmp_path / "rows.csv").run()
    second = [row for row in rows_of(tmp_path / "rows.csv") if row["class"] == "Two"]
    given = {(row["case"], row["source"]): row["dice"] for row in second}
    assert given[("a", "b")] == given[("b", "c")] == ""
    assert float(given[("c", "a")]) == pytest.approx(means["Two"], abs=1e-4)


@pytest.mark.parametrize("sources", [1, 2, 9])
def test_every_scan_takes_labels_from_those_that_follow(network, tmp_path, sources):
    scans = [scan(name, seed) for seed, name in enumerate("abcd")]
    LabelTransfer(network, Dataset(scans), NAMES, tmp_path / "rows.csv", sources=sources, keys=50, queries=60).run()
    pairs = {(row["case"], row["source"]) for row in rows_of(tmp_path / "rows.csv")}
    expected = {("abcd"[i], "abcd"[(i + step) % 4]) for i in range(4) for step in range(1, min(sources, 3) + 1)}
    assert pairs == expected


def test_no_scan_takes_labels_from_its_own_patient(network, tmp_path):
    scans = [scan(f"{patient}{visit}", visit) | {"patient": patient} for patient in "xyz" for visit in (1, 2)]
    LabelTransfer(network, Dataset(scans), NAMES, tmp_path / "rows.csv", sources=3, keys=50, queries=60).run()
    pairs = {(row["case"], row["source"]) for row in rows_of(tmp_path / "rows.csv")}
    assert len(pairs) == 6 * 3 and all(case[0] != source[0] for case, source in pairs)
    assert {source for case, source in pairs if case == "x1"} == {"y1", "y2", "z1"}


@pytest.mark.parametrize("count", [1, 2])
def test_scans_of_a_single_patient_are_refused(network, tmp_path, count):
    scans = [scan(f"{visit}", visit) | {"patient": "x"} for visit in range(count)]
    with pytest.raises(InputError, match=f"of two patients or more .* but there are {count} of 1; use --split all"):
        LabelTransfer(network, Dataset(scans), NAMES, tmp_path / "rows.csv").run()
