from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import RandFlip

from custom_components.errors import InputError
from custom_components.transforms import (
    BatchAugmentation,
    RandBezierIntensity,
    RandBezierIntensityd,
    RandInPaint,
    RandInPaintd,
    RandLocalShuffle,
    RandLocalShuffled,
)
from custom_components.transforms.bezier import apply_table, bezier_table
from custom_components.transforms.inpaint import box_mask, inpaint_batch, inpaint_boxes
from custom_components.transforms.shuffle import random_permutations, shuffle_blocks

TRANSFORMS = [RandLocalShuffle, RandBezierIntensity, RandInPaint]


def images(number=4, channels=1, shape=(16, 12, 9), seed=0) -> torch.Tensor:
    return torch.rand(number, channels, *shape, generator=torch.Generator().manual_seed(seed))


def test_a_batch_is_shuffled_as_its_images_one_by_one():
    batch, size = images(3, 2), (4, 3, 3)
    starts = [torch.tensor([[0, 0, 0], [4, 3, 3]]), torch.tensor([[8, 9, 6]]), torch.tensor([[12, 0, 0], [1, 3, 2]])]
    permutations = random_permutations(5, 36, seed=1)
    numbered = torch.cat([torch.nn.functional.pad(s, (1, 0), value=n) for n, s in enumerate(starts)])
    result = shuffle_blocks(batch, numbered, size, permutations)
    parts = permutations.split([2, 1, 2])
    for image, ours, block_starts, order in zip(batch, result, starts, parts, strict=True):
        assert torch.equal(ours, shuffle_blocks(image, block_starts, size, order))


def test_a_batch_has_a_curve_for_each_image():
    batch = images(3, 2)
    points = torch.rand(3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tables = bezier_table(points, 257)
    result = apply_table(batch, tables)
    for image, ours, control, table in zip(batch, result, points, tables, strict=True):
        assert torch.allclose(table, bezier_table(control, 257), atol=1e-7)
        assert torch.equal(ours, apply_table(image, table))


def test_a_batch_has_boxes_of_its_own_in_each_image():
    batch = images(2, 2)
    starts = torch.tensor([[[1, 2, 3], [5, 5, 5]], [[0, 0, 0], [9, 9, 9]]])
    sizes = torch.tensor([[[3, 3, 3], [4, 4, 4]], [[2, 12, 1], [0, 0, 0]]])  # a box of size 0 is none
    mask = box_mask(batch.shape[2:], starts, sizes)
    result = inpaint_batch(batch, starts, sizes, 0, (2.0, 3.0))
    for image, ours, inside, s, z in zip(batch, result, mask, starts, sizes, strict=True):
        alone = inpaint_boxes(image, s, z, 0, (2.0, 3.0))
        assert torch.equal(alone >= 2, ours >= 2) and torch.equal(ours >= 2, inside.expand_as(ours))
        assert torch.equal(ours[:, ~inside], image[:, ~inside])
    assert mask[1].sum() == 24


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_image_of_a_batch_draws_for_itself(transform):
    batch = images(1).expand(6, -1, -1, -1, -1).contiguous()
    before = batch.clone()
    augment = transform(prob=1.0)
    augment.set_random_state(0)
    result = augment.batch(batch)
    assert torch.equal(batch, before)
    assert len({tuple(image.flatten().tolist()) for image in result}) == 6


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_an_image_of_a_batch_is_changed_with_the_given_probability(transform):
    batch = images(400, shape=(6, 5, 4))
    augment = transform(prob=0.3)
    augment.set_random_state(0)
    changed = (augment.batch(batch) != batch).flatten(1).any(1).float().mean()
    assert abs(changed - 0.3) < 0.07
    assert torch.equal(transform(prob=0.0).batch(batch), batch)


def test_every_permutation_is_equally_likely():
    names, counts = np.unique(random_permutations(24_000, 4, seed=3).numpy(), axis=0, return_counts=True)
    assert len(names) == 24 and (np.sort(names, axis=1) == np.arange(4)).all()
    assert ((counts - 1000) ** 2 / 1000).sum() < 23 + 4 * np.sqrt(2 * 23)


def test_set_determinism_decides_a_batch_and_dictionary_forms_serve():
    keys = ["view_1", "view_2"]
    results = []
    for seed in (1, 1, 2):
        augment = BatchAugmentation([RandLocalShuffled(keys), RandBezierIntensityd(keys), RandInPaintd(keys)])
        torch.manual_seed(seed)
        results.append([augment(images()) for _ in range(2)])
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[0][1]) and not torch.equal(results[0][0], results[2][0])


def test_a_transform_without_a_batch_form_is_refused():
    with pytest.raises(InputError, match="RandFlip cannot augment a whole batch"):
        BatchAugmentation([RandFlip(prob=1.0)])
