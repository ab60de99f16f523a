from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from custom_components.transforms import RandInPaint, RandInPaintd
from custom_components.transforms.inpaint import box_mask, inpaint_boxes


def seeded(seed=0, **settings) -> RandInPaint:
    transform = RandInPaint(**settings)
    transform.set_random_state(seed)
    return transform


def loop_mask(shape, starts, sizes) -> torch.Tensor:
    mask = torch.zeros(*shape, dtype=torch.bool)
    for (x, y, z), (a, b, c) in zip(starts.tolist(), sizes.tolist(), strict=True):
        mask[x : x + a, y : y + b, z : z + c] = True
    return mask


@pytest.mark.parametrize("shape", [(20, 13, 9), (30, 1, 4), (1, 1, 1)])
def test_the_mask_is_the_union_of_the_boxes(shape):
    transform = seeded()
    for _ in range(10):
        transform.randomize(shape)
        expected = loop_mask(shape, transform.starts, transform.sizes)
        assert torch.equal(box_mask(shape, transform.starts[None], transform.sizes[None])[0], expected)
        assert expected.any()


def test_only_boxes_change_and_they_hold_uniform_noise():
    shape = (40, 40, 40)
    image = torch.full((2, *shape), 5.0)
    transform = seeded(further_box_prob=1.0, fill_range=(-1.0, 3.0))
    result = transform(image)
    mask = loop_mask(shape, transform.starts, transform.sizes)
    assert (image == 5).all() and (result[:, ~mask] == 5).all()
    noise = result[:, mask]
    assert noise.min() >= -1 and noise.max() <= 3
    histogram = torch.histc(noise, 8, -1, 3) / noise.numel()
    assert (histogram - 1 / 8).abs().max() < 0.02
    assert not torch.equal(noise[0], noise[1])  # channels have noise of their own
    assert abs(np.corrcoef(noise)[0, 1]) < 0.1


@pytest.mark.parametrize("shape", [(128, 128, 32), (37, 50, 35), (5, 1, 3)])
def test_boxes_lie_inside_the_image_and_have_the_wanted_sides(shape):
    transform = seeded(further_box_prob=1.0, max_boxes=200)
    transform.randomize(shape)
    sizes, starts = transform.sizes.numpy(), transform.starts.numpy()
    assert sizes.shape == starts.shape == (200, 3) and (starts >= 0).all() and (starts + sizes <= shape).all()
    for axis, side in enumerate(shape):
        assert set(sizes[:, axis]) == set(range(max(1, side // 10), max(1, side // 5) + 1))
    # both ends of the image are reached
    assert (starts.min(0) <= np.array(shape) // 10).all()
    assert ((starts + sizes).max(0) >= 0.9 * np.array(shape)).all()


def test_the_number_of_boxes_follows_the_probability_of_a_further_one():
    transform = seeded(further_box_prob=0.5, max_boxes=4)
    counts = np.zeros(5)
    for _ in range(4000):
        transform.randomize((20, 20, 20))
        counts[len(transform.starts)] += 1
    assert np.abs(counts / 4000 - [0, 1 / 2, 1 / 4, 1 / 8, 1 / 8]).max() < 0.03
    single = seeded(further_box_prob=1.0, max_boxes=1)
    single.randomize((20, 20, 20))
    assert len(single.starts) == 1


def test_the_same_parameters_give_the_same_image():
    image, starts, sizes = torch.rand(1, 9, 8, 7), torch.tensor([[1, 2, 3]]), torch.tensor([[3, 3, 3]])
    a, b, c = (inpaint_boxes(image, starts, sizes, seed, (0.0, 1.0)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_nothing_happens_with_probability_zero():
    image = torch.rand(1, 9, 9, 9)
    assert torch.equal(seeded(prob=0.0)(image), image)


def test_settings_out_of_range_are_refused():
    for settings in [{"max_boxes": 0}, {"further_box_prob": 1.5}, {"min_fraction": 0.3}, {"max_fraction": 2.0}]:
        with pytest.raises(ValueError, match="must be positive"):
            RandInPaint(**settings)


def test_type_and_geometry_are_kept():
    image = MetaTensor(torch.rand(1, 9, 8, 7).half(), affine=torch.diag(torch.tensor([1.0, 1, 2, 1])))
    result = seeded()(image)
    assert isinstance(result, MetaTensor) and torch.equal(result.affine, image.affine)
    assert result.dtype == torch.float16
    from_numpy = seeded()(image.numpy())
    assert isinstance(from_numpy, torch.Tensor) and np.array_equal(from_numpy, result)
    assert seeded()(np.zeros((1, 9, 8, 7), dtype=np.int16)).dtype == torch.float32


def test_one_seed_gives_one_result_and_the_keys_differ():
    image = torch.rand(1, 16, 16, 16)
    results = []
    for _ in range(2):
        composed = Compose([pickle.loads(pickle.dumps(RandInPaintd(["view_1", "view_2"])))])
        composed.set_random_state(5)
        results.append(composed({"view_1": image, "view_2": image}))
    assert torch.equal(results[0]["view_1"], results[1]["view_1"])
    assert torch.equal(results[0]["view_2"], results[1]["view_2"])
    assert not torch.equal(results[0]["view_1"], results[0]["view_2"])
