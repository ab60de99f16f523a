"""Crops around voxels that were listed once are those of MONAI, which lists them at every crop."""

import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged, RandCropByLabelClassesd, SpatialPadd

from custom_components.data import MemoryMappedDataset
from custom_components.transforms import ClassIndicesd, RandCropByClassIndicesd

LABEL = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (1, 11, 9, 6))).to(torch.uint8)


def crops(transforms, item, count=20):
    transforms = Compose(transforms)
    transforms.set_random_state(0)
    return [transforms(dict(item))[0] for _ in range(count)]


def ours(size, num_classes, **options):
    return RandCropByClassIndicesd(
        ["image", "label"],
        "label",
        size,
        num_classes=num_classes,
        indices_key="class_indices",
        allow_smaller=True,
        warn=False,
        **options,
    )


def test_few_voxels_are_all_listed_and_a_class_without_any_has_none():
    table = ClassIndicesd(5)({"label": LABEL})["class_indices"]
    assert table.shape == (6, max(int((LABEL == value).sum()) for value in range(4)))
    for value, row in enumerate(table):
        assert row[row >= 0].tolist() == [i for i, found in enumerate(LABEL.flatten().tolist()) if found == value]


def test_many_voxels_are_drawn_anywhere_once_and_always_the_same():
    label = torch.zeros(1, 64, 32, 32)
    label[0, 5, 5, 5] = 1
    first, second = (ClassIndicesd(1, max_indices=256)({"label": label})["class_indices"] for _ in range(2))
    assert torch.equal(first, second) and first.shape == (2, 256)
    assert (label.flatten()[first[0]] == 0).all() and len(first[0].unique()) == 256
    # every n-th voxel of 64 * 32 * 32 would be of one plane
    positions = np.unravel_index(first[0].numpy(), label.shape[1:])
    assert all(len(np.unique(axis)) > size * 0.9 for axis, size in zip(positions, label.shape[1:]))
    assert first[1].tolist() == [(5 * 32 + 5) * 32 + 5] + 255 * [-1]


@pytest.mark.parametrize("ratios", [None, [1.0, 1.0, 3.0, 1.0, 2.0]])
def test_crops_are_those_of_monai(ratios):
    item = {"image": torch.rand(LABEL.shape), "label": LABEL}
    theirs = RandCropByLabelClassesd(["image", "label"], "label", [4, 5, 6], ratios, num_classes=5, warn=False)
    expected = crops([theirs], item)
    for crop, other in zip(crops([ClassIndicesd(4), ours([4, 5, 6], 5, ratios=ratios)], item), expected, strict=True):
        assert crop.keys() == other.keys()
        assert all(torch.equal(crop[key], other[key]) for key in other)


def test_padding_a_crop_is_cropping_a_padded_scan():
    item = {"image": torch.rand(LABEL.shape), "label": LABEL}
    size, pad = [4, 12, 7], SpatialPadd(["image", "label"], [4, 12, 7])
    ratios = [0.0, 1.0, 1.0, 1.0]  # not around the background, to which padding adds
    theirs = RandCropByLabelClassesd(["image", "label"], "label", size, ratios, num_classes=4, warn=False)
    expected = crops([pad, theirs], item)
    for crop, other in zip(crops([ClassIndicesd(3), ours(size, 4, ratios=ratios), pad], item), expected, strict=True):
        assert crop["image"].shape == (1, *size)
        assert all(torch.equal(crop[key], other[key]) for key in other)


def test_the_indices_are_kept_with_the_prepared_scan(tmp_path):
    np.save(tmp_path / "scan.npy", LABEL.numpy())
    load = LoadImaged(["image", "label"], reader="NumpyReader", image_only=True, ensure_channel_first=False)
    data = [{"image": str(tmp_path / "scan.npy"), "label": str(tmp_path / "scan.npy")}]
    transforms = [load, ClassIndicesd(3), ours([4, 4, 4], 4)]
    dataset = MemoryMappedDataset(data, transforms, tmp_path / "cache", progress=False)
    assert len(list((tmp_path / "cache").glob("*/class_indices.npy"))) == 1
    crop = dataset[0][0]
    assert crop["label"].shape == (1, 4, 4, 4) and "class_indices" not in crop
