import pytest
import torch
from scipy import ndimage

from custom_components.networks import FPN3d
from custom_components.probing import VoxelVectors, sample_voxels, vectors_at


@pytest.fixture
def label():
    label = torch.zeros(14, 12, 10, dtype=torch.uint8)
    label[2:6, 3:7, 4:8] = 1
    label[8:10, 3:5, 2] = 2
    return label


def test_every_kind_of_voxel_is_sampled_and_its_weights_add_up_to_all_of_its_voxels(label):
    positions, weights = sample_voxels(label, per_class=10, background=20)
    values = label[tuple(positions.T)]
    near = torch.as_tensor(ndimage.maximum_filter(label.numpy() > 0, 7, mode="constant")) & (label == 0)
    far = (label == 0) & ~near
    kinds = {"class 1": label == 1, "class 2": label == 2, "near": near, "far": far}
    for name, mask in kinds.items():
        chosen = mask[tuple(positions.T)]
        limit = 10 if name.startswith("class") else 20
        assert chosen.sum() == min(mask.sum(), limit), name
        assert weights[chosen].sum() == pytest.approx(int(mask.sum())), name
    assert len(positions.unique(dim=0)) == len(positions)
    assert set(values.tolist()) == {0, 1, 2}


def test_a_seed_decides_which_voxels(label):
    first, again, other = (sample_voxels(label, 10, 10, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_label_without_anything_drawn_has_far_background_alone():
    positions, weights = sample_voxels(torch.zeros(4, 4, 4), 10, 10)
    assert len(positions) == 10 and weights.sum() == pytest.approx(64)


@pytest.mark.parametrize("shape", [(17, 20, 11), (1, 9, 5)])
def test_vectors_are_the_pyramid_at_the_voxels_position_in_every_scale(shape):
    torch.manual_seed(0)
    backbone = FPN3d(1, 4, 3).eval()
    image = torch.rand(1, *shape)
    positions = torch.stack([torch.randint(size, (30,)) for size in shape], 1)
    vectors = vectors_at(backbone, image, positions)
    with torch.no_grad():
        pyramid = backbone(image[None])
    for row, (x, y, z) in zip(vectors, positions.tolist()):
        expected = torch.cat([p[0, :, x >> i, y >> i, z >> i] for i, p in enumerate(pyramid)])
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_a_scan_larger_than_a_tile_gives_nearly_the_vectors_of_the_whole():
    torch.manual_seed(0)
    backbone = FPN3d(1, 4, 3).eval()
    image = torch.rand(1, 70, 41, 30)
    positions = torch.stack([torch.randint(size, (400,)) for size in image.shape[1:]], 1)
    whole = vectors_at(backbone, image, positions)
    tiled = vectors_at(backbone, image, positions, tile=(16, 16, 16), margin=24)
    # a margin of 24 voxels holds nearly all that a voxel sees
    torch.testing.assert_close(tiled, whole, rtol=1e-3, atol=1e-3)


def test_scans_join_to_one_set():
    parts = [VoxelVectors(torch.rand(n, 3), torch.zeros(n), torch.ones(n), torch.ones(n, 2) > 0) for n in (2, 5)]
    joined = VoxelVectors.joined(parts)
    assert len(joined) == 7 and joined.annotated.shape == (7, 2)
