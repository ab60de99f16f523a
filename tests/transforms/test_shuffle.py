from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from custom_components.transforms import RandLocalShuffle, RandLocalShuffled
from custom_components.transforms.shuffle import random_permutations, shuffle_blocks


def seeded(seed=0, **settings) -> RandLocalShuffle:
    transform = RandLocalShuffle(**{"prob": 1.0, **settings})
    transform.set_random_state(seed)
    return transform


def test_blocks_are_those_of_a_loop_over_voxels():
    random = np.random.default_rng(0)
    image = torch.rand(2, 7, 6, 5)
    starts, size = torch.tensor([[0, 0, 0], [1, 3, 2], [4, 3, 2]]), (3, 2, 3)
    permutations = torch.from_numpy(np.stack([random.permutation(18) for _ in starts]))
    expected = image.clone()
    for (x, y, z), permutation in zip(starts.tolist(), permutations, strict=True):
        block = image[:, x : x + 3, y : y + 2, z : z + 3].reshape(2, 18)
        expected[:, x : x + 3, y : y + 2, z : z + 3] = block[:, permutation].view(2, 3, 2, 3)
    before = image.clone()
    assert torch.equal(shuffle_blocks(image, starts, size, permutations), expected)
    assert torch.equal(image, before)
    transposed = image.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    assert torch.equal(shuffle_blocks(transposed, starts, size, permutations), expected)


@pytest.mark.parametrize("shape", [(128, 128, 32), (37, 50, 35), (19, 5, 3), (1, 40, 2), (1, 1, 2), (2, 2, 2)])
def test_the_histogram_is_kept_exactly_and_voxels_move(shape):
    image = torch.arange(int(np.prod(shape))).view(1, *shape).float()
    transform = seeded()
    results = [transform(image) for _ in range(5)]
    for result in results:
        assert torch.equal(result.flatten().sort().values, image.flatten())
    assert any(not torch.equal(result, image) for result in results)


def test_blocks_lie_inside_the_image_and_do_not_overlap():
    shape = (21, 16, 9)
    transform = seeded(block_fraction=0.2, num_blocks=1000)
    assert transform.block_size(shape) == (4, 3, 2)
    for _ in range(20):
        transform.randomize(shape)
        count = np.zeros(shape, dtype=int)
        for x, y, z in transform.block_starts.tolist():
            assert x + 4 <= 21 and y + 3 <= 16 and z + 2 <= 9
            count[x : x + 4, y : y + 3, z : z + 2] += 1
        assert count.max() == 1


def test_voxels_stay_in_their_block():
    shape = (40, 40, 40)
    positions = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")).float()
    moved = (seeded(block_fraction=0.1)(positions) - positions).abs()
    assert moved.max() == 3  # blocks of 4 x 4 x 4


@pytest.mark.parametrize(
    ("shape", "size"),
    [((128, 128, 32), (6, 6, 2)), ((20, 60, 140), (2, 3, 7)), ((1, 1, 50), (1, 1, 2)), ((100, 19, 2), (5, 2, 2))],
)
def test_a_block_never_shrinks_to_nothing(shape, size):
    assert RandLocalShuffle().block_size(shape) == size


def test_blocks_have_permutations_of_their_own_that_are_uniform():
    transform = seeded(block_fraction=0.01, num_blocks=5000)
    transform.randomize((60, 60, 60))
    assert transform.permutations.shape == (5000, 8)
    permutations = transform.permutations.long()
    assert torch.equal(permutations.sort(1).values, torch.arange(8).expand(5000, 8))
    frequency = torch.nn.functional.one_hot(permutations, 8).float().mean(0)
    assert (frequency - 1 / 8).abs().max() < 0.025


@pytest.mark.parametrize("length", [2, 256, 257, 1000])  # with random numbers of 32 bits, and of 64
def test_random_permutations_of_any_length(length):
    permutations = random_permutations(51, length, seed=3)
    assert permutations.shape == (51, length)
    assert (permutations.sort(1).values == torch.arange(length)).all()
    assert len(permutations.unique(dim=0)) == (51 if length > 2 else 2)
    assert torch.equal(permutations, random_permutations(51, length, seed=3))


def test_channels_are_shuffled_alike():
    image = torch.rand(1, 16, 16, 16)
    result = seeded()(torch.cat([image, -image]))
    assert torch.equal(result[0], -result[1])


def test_the_number_of_blocks_is_limited_by_the_grid():
    transform = seeded(num_blocks=5000)
    transform.randomize((128, 128, 32))
    assert len(transform.block_starts) == 5000
    transform.randomize((4, 4, 4))
    assert 1 <= len(transform.block_starts) <= 8


def test_nothing_happens_with_probability_zero():
    image = torch.rand(1, 9, 9, 9)
    assert torch.equal(seeded(prob=0.0)(image), image)


def test_a_block_of_one_voxel_is_refused():
    with pytest.raises(ValueError, match="single voxel"):
        seeded()(torch.rand(1, 1, 1, 1))
    with pytest.raises(ValueError, match="single voxel"):
        seeded(min_block_size=1)(torch.rand(1, 15, 15, 15))
    for settings in [{"num_blocks": 0}, {"block_fraction": 0.0}, {"min_block_size": 0}]:
        with pytest.raises(ValueError, match="must be positive"):
            RandLocalShuffle(**settings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int16])
def test_type_and_geometry_are_kept(dtype):
    affine = torch.diag(torch.tensor([1.0, 1, 2, 1]))
    image = MetaTensor((100 * torch.rand(1, 9, 8, 7)).to(dtype), affine=affine)
    result = seeded()(image)
    assert isinstance(result, MetaTensor) and torch.equal(result.affine, image.affine) and result.dtype == dtype
    from_numpy = seeded()(image.numpy())
    assert isinstance(from_numpy, torch.Tensor) and np.array_equal(from_numpy, result)


def test_one_seed_gives_one_result_and_the_keys_differ():
    image = torch.rand(1, 16, 16, 16)
    transform = RandLocalShuffled(["view_1", "view_2", "absent"], prob=1.0, allow_missing_keys=True)
    results = []
    for _ in range(2):
        composed = Compose([pickle.loads(pickle.dumps(transform))])
        composed.set_random_state(5)
        results.append(composed({"view_1": image, "view_2": image}))
    assert torch.equal(results[0]["view_1"], results[1]["view_1"])
    assert torch.equal(results[0]["view_2"], results[1]["view_2"])
    assert not torch.equal(results[0]["view_1"], results[0]["view_2"])
