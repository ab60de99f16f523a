"""Label classes that are one piece."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components.transforms import LargestComponentd

NAMES = ["A", "B", "C"]


def flood(mask, start):
    """The component of a voxel, voxel by voxel."""
    found, open_voxels = {start}, [start]
    while open_voxels:
        voxel = open_voxels.pop()
        for step in np.ndindex(3, 3, 3):
            other = tuple(v + s - 1 for v, s in zip(voxel, step))
            inside = all(0 <= o < n for o, n in zip(other, mask.shape))
            if inside and mask[other] and other not in found:
                found.add(other)
                open_voxels.append(other)
    return found


def test_the_largest_piece_is_what_a_flood_fill_finds():
    label = np.random.default_rng(0).choice(4, (9, 10, 11), p=[0.82, 0.06, 0.06, 0.06])
    result = LargestComponentd("pred", NAMES, ["A", "C"])({"pred": torch.tensor(label)[None]})["pred"][0].numpy()
    for value, one_piece in ((1, True), (2, False), (3, True)):
        if not one_piece:
            assert np.array_equal(result == value, label == value)
            continue
        pieces, left = [], {tuple(v) for v in np.argwhere(label == value)}
        while left:
            pieces.append(flood(label == value, next(iter(left))))
            left -= pieces[-1]
        kept = {tuple(v) for v in np.argwhere(result == value)}
        assert kept in pieces and len(kept) == max(map(len, pieces)) and len(pieces) > 3
    assert set(np.unique(result[result != label])) <= {0}


@pytest.mark.parametrize("names", [["A", "B"], ["Other"], []])
def test_names_that_are_no_class_and_classes_that_are_not_there_change_nothing(names):
    label = torch.zeros(1, 4, 5, 6, dtype=torch.uint8)
    label[0, 0, 0, 0] = label[0, 3, 4, 5] = 3
    pred = MetaTensor(label.clone(), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    result = LargestComponentd("pred", NAMES, names)({"pred": pred})["pred"]
    assert torch.equal(result.as_tensor(), label) and torch.equal(result.affine, pred.affine)


def test_the_affine_stays_and_the_label_that_came_is_not_changed():
    label = torch.zeros(1, 4, 5, 6, dtype=torch.uint8)
    label[0, 0, 0, :2] = label[0, 3, 4, 5] = 1
    pred = MetaTensor(label.clone(), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    result = LargestComponentd("pred", NAMES, NAMES)({"pred": pred})["pred"]
    assert result.sum() == 2 and result.dtype == torch.uint8 and torch.equal(result.affine, pred.affine)
    assert torch.equal(pred.as_tensor(), label)


def test_a_single_name_is_one_class():
    label = torch.zeros(1, 9, 3, 3, dtype=torch.uint8)
    label[:, :3], label[:, 5] = 1, 1
    for one_piece in ("Liver", ["Liver"]):
        result = LargestComponentd("pred", ["Liver"], one_piece)({"pred": label})["pred"]
        assert result[:, :3].all() and not result[:, 5].any()
