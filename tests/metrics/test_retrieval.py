import csv

import pytest
import torch
import torch.nn.functional as F

from custom_components.metrics import VoxelRetrieval


def output_of(first, second, voxels, error=0.5):
    original = torch.zeros(2 * len(first), 1, 2, 2, 2)
    target = {"original": original, "voxels": torch.cat([voxels, voxels])}
    return {"pred": (torch.cat([first, second]), original + error), "label": target}


def test_equal_embeddings_are_found_at_the_very_voxel(tmp_path):
    embeddings = F.normalize(torch.randn(2, 30, 16), dim=-1)
    voxels = torch.randint(0, 20, (2, 30, 3))
    metric = VoxelRetrieval(csv_path=tmp_path / "retrieval.csv")
    metric.update(output_of(embeddings, embeddings, voxels))
    assert metric.compute() == 1.0
    assert metric.results["median_distance_mm"] == 0
    assert metric.results["restoration_error"] == pytest.approx(0.25)
    with open(tmp_path / "retrieval.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_distances_are_in_voxels_and_in_mm():
    embeddings = torch.eye(3)[None]
    swapped = embeddings[:, [1, 0, 2]]
    voxels = torch.tensor([[[0, 0, 0], [0, 0, 2], [9, 9, 9]]])
    metric = VoxelRetrieval(spacing=(1, 1, 4), within=2)
    metric.update(output_of(embeddings, swapped, voxels))
    assert metric.compute() == 1.0
    assert metric.results["retrieved_within_0"] == pytest.approx(1 / 3)
    assert metric.results["retrieved_within_1"] == pytest.approx(1 / 3)
    assert metric.results["retrieved_within_3"] == 1.0
    assert metric.results["median_distance_mm"] == 8


def test_padding_rows_are_neither_asked_for_nor_found():
    generator = torch.Generator().manual_seed(0)
    real = torch.nn.functional.normalize(torch.rand(1, 2, 4, generator=generator), dim=2)
    # the padding of the second view is nearer to the real voxels of the first than their own partners are
    first = torch.cat([real, -real], 1)
    second = torch.cat([torch.nn.functional.normalize(real + 0.1 * torch.eye(4)[None, :2], dim=2), real], 1)
    voxels = torch.tensor([[[0, 0, 0], [1, 1, 1], [-1, -1, -1], [-1, -1, -1]]])
    metric = VoxelRetrieval()
    metric.update(output_of(first, second, voxels))
    assert metric.results["retrieved_within_0"] == 1.0 and metric.results["pairs"] == 1
