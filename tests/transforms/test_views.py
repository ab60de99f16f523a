from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, list_data_collate
from monai.transforms import Compose, Randomizable

from custom_components.transforms import OverlappingViews, OverlappingViewsd
from custom_components.transforms.views import common_voxels, crop_start_range, cut_view, random_body_voxel


def numbered(shape) -> torch.Tensor:
    """A volume in which every voxel has its own value, from 1."""
    return torch.arange(1, int(np.prod(shape)) + 1).view(1, *shape).float()


def blob(shape, density=0.4, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((1, *shape)) < density).to(torch.uint8)


def rows(voxels: torch.Tensor) -> torch.Tensor:
    return voxels[(voxels >= 0).all(1)]


@pytest.mark.parametrize("shape", [(20, 17, 9), (5, 17, 9), (5, 4, 3), (30, 8, 1), (1, 1, 1)])
@pytest.mark.parametrize("crop_size", [(8, 8, 4), (1, 3, 5)])
def test_common_voxels_have_the_same_value_in_both_views_and_lie_in_the_body(shape, crop_size):
    image, body = numbered(shape), blob(shape, 0.7)
    body[0, shape[0] // 2, shape[1] // 2, shape[2] // 2] = 1
    views = OverlappingViews(crop_size, max_voxels=40, num_pairs=5)
    views.set_random_state(0)
    pairs = views(image, body)
    assert len(pairs) == 5
    for pair in pairs:
        assert pair.view_1.shape == pair.view_2.shape == (1, *crop_size)
        assert pair.voxels_1.shape == pair.voxels_2.shape == (40, 3)
        a, b = rows(pair.voxels_1), rows(pair.voxels_2)
        assert 1 <= len(a) == len(b)
        # rows of -1 come last
        assert (pair.voxels_1[len(a) :] == -1).all() and (pair.voxels_2[len(a) :] == -1).all()
        values = pair.view_1[0][tuple(a.T)]
        assert torch.equal(values, image[0][tuple(pair.positions[: len(a)].long().T)].float())
        assert torch.equal(values, pair.view_2[0][tuple(b.T)])
        assert len(values.unique()) == len(values)
        assert body.flatten()[values.long() - 1].all()  # a voxel of the padding would have the value 0


@pytest.mark.parametrize("max_voxels", [3, 1000])
def test_common_voxels_are_those_of_a_loop_over_the_volume(max_voxels):
    shape, crop = (12, 9, 7), (6, 7, 9)
    body, start_1, start_2 = blob(shape), (2, 1, -2), (5, 2, -1)
    expected = {
        voxel
        for voxel in np.ndindex(*shape)
        if body[(0, *voxel)]
        and all(0 <= v - s < c for start in (start_1, start_2) for v, s, c in zip(voxel, start, crop, strict=True))
    }
    voxels_1, voxels_2 = common_voxels(body, start_1, start_2, crop, max_voxels, np.random.default_rng(0))
    found_1 = {tuple(map(int, row)) for row in rows(voxels_1) + torch.tensor(start_1)}
    found_2 = {tuple(map(int, row)) for row in rows(voxels_2) + torch.tensor(start_2)}
    assert found_1 == found_2 and len(found_1) == min(max_voxels, len(expected))
    assert found_1 <= expected


def test_crops_that_do_not_overlap_have_no_common_voxel():
    voxels_1, voxels_2 = common_voxels(
        torch.ones(1, 9, 9, 9), (0, 0, 0), (5, 0, 0), (3, 3, 3), 4, np.random.default_rng(0)
    )
    assert (voxels_1 == -1).all() and (voxels_2 == -1).all()


def test_a_view_is_the_padded_crop():
    image = numbered((6, 5, 4))
    start, crop, pad = (-2, 3, 1), (5, 4, 2), -7.0
    view = cut_view(image, start, crop, pad)
    for voxel in np.ndindex(*crop):
        source = tuple(v + s for v, s in zip(voxel, start, strict=True))
        inside = all(0 <= v < n for v, n in zip(source, (6, 5, 4), strict=True))
        assert view[(0, *voxel)] == (image[(0, *source)] if inside else pad)


@pytest.mark.parametrize("side", [1, 3, 7, 20])
@pytest.mark.parametrize("crop", [1, 3, 7, 8])
def test_the_range_of_starts_is_exactly_that_of_crops_with_the_anchor(side, crop):
    for anchor in range(side):
        inside = [s for s in range(-crop, side + 1) if s <= anchor < s + crop]
        if crop <= side:
            expected = [s for s in inside if 0 <= s <= side - crop]
        else:
            expected = [s for s in inside if s <= 0 and s + crop >= side]
        first, last = crop_start_range(anchor, side, crop)
        assert list(range(first, last + 1)) == expected


@pytest.mark.parametrize("density", [0.5, 0.02])
def test_the_anchor_is_uniform_over_the_body(density):
    body = blob((9, 8, 7), density, seed=3)[0].numpy()
    random = np.random.RandomState(0)
    draws = 300 * int(body.sum()) if density < 0.1 else 20 * int(body.sum())
    counts = np.zeros(body.shape)
    for _ in range(draws):
        counts[random_body_voxel(body, random)] += 1
    assert not counts[body == 0].any()
    observed, expected = counts[body > 0], draws / body.sum()
    chi_square = ((observed - expected) ** 2 / expected).sum()
    freedom = observed.size - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_an_anchor_that_random_tries_miss_is_found_by_search():
    body = np.zeros((150, 150, 100), dtype=np.uint8)
    body[7, 8, 9] = body[149, 149, 99] = 1
    random = np.random.RandomState(0)
    found = {random_body_voxel(body, random) for _ in range(12)}
    assert found == {(7, 8, 9), (149, 149, 99)}
    assert random_body_voxel(np.zeros((3, 3, 3)), random) is None


def test_each_start_with_the_anchor_is_equally_likely():
    body = torch.zeros(1, 12, 9, 3)
    body[0, 5, 0, 2] = 1
    views = OverlappingViews((4, 4, 5), num_pairs=3000)
    views.set_random_state(0)
    views.randomize(body[0].numpy())
    starts = np.array([pair[:2] for pair in views.pairs]).reshape(-1, 3)
    for axis, possible in enumerate([[2, 3, 4, 5], [0], [-2, -1, 0]]):
        values, counts = np.unique(starts[:, axis], return_counts=True)
        assert values.tolist() == possible
        assert np.abs(counts / 6000 - 1 / len(possible)).max() < 0.03


def test_common_voxels_are_chosen_uniformly():
    counts = np.zeros(60)
    for seed in range(2000):
        voxels, _ = common_voxels(
            torch.ones(1, 5, 4, 3), (0, 0, 0), (0, 0, 0), (5, 4, 3), 6, np.random.default_rng(seed)
        )
        counts[np.ravel_multi_index(tuple(voxels.numpy().T), (5, 4, 3))] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 59 + 4 * np.sqrt(2 * 59)


def test_only_the_crops_are_read_from_a_memory_map(tmp_path):
    resource = pytest.importorskip("resource")
    shape = (1, 1024, 1024, 512)  # sparse files of 1 and 0.5 GiB
    image = MetaTensor(torch.from_numpy(np.memmap(tmp_path / "image", np.float16, "w+", shape=shape)))
    body = MetaTensor(torch.from_numpy(np.memmap(tmp_path / "body", np.uint8, "w+", shape=shape)))
    body[0, 500:502, 500:502, 100] = 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start_1, start_2, crop = (480, 490, 90), (490, 480, 95), (32, 32, 16)
    assert not cut_view(image, start_1, crop).any()
    voxels, _ = common_voxels(body, start_1, start_2, crop, 9, np.random.default_rng(0))
    assert len(rows(voxels)) == 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("wrap", [lambda a: a, torch.from_numpy, lambda a: MetaTensor(torch.from_numpy(a))])
def test_float16_memory_maps_give_plain_float32_views(tmp_path, wrap):
    image = np.random.default_rng(0).random((2, 12, 11, 10)).astype(np.float16)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "body.npy", np.ones((1, 12, 11, 10), dtype=np.uint8))
    stored, body = (wrap(np.load(tmp_path / f"{name}.npy", mmap_mode="c")) for name in ("image", "body"))
    views = OverlappingViews([5, 6, 7], max_voxels=9)
    views.set_random_state(0)
    (pair,) = views(stored, body)
    dtypes = (torch.float32,) * 2 + (torch.int64,) * 2 + (torch.float32,)
    for tensor, dtype in zip(pair, dtypes, strict=True):
        assert type(tensor) is torch.Tensor and tensor.is_contiguous() and tensor.dtype == dtype
    (x, y, z), _, _ = views.pairs[0]
    assert np.array_equal(pair.view_1, image[:, x : x + 5, y : y + 6, z : z + 7].astype(np.float32))


def test_an_empty_body_and_a_misfit_are_refused_with_the_name_of_the_scan():
    data = {"image": torch.rand(1, 8, 8, 8), "body": torch.zeros(1, 8, 8, 8), "case": "case_3"}
    with pytest.raises(ValueError, match="^case_3: the body mask is empty"):
        OverlappingViewsd(crop_size=(4, 4, 4))(data)
    with pytest.raises(ValueError, match=r"^image: .*\(1, 8, 8, 8\) and \(1, 8, 8, 7\)"):
        OverlappingViews((4, 4, 4))(data["image"], torch.ones(1, 8, 8, 7))
    for settings in [{"crop_size": (4, 4)}, {"crop_size": (4, 0, 4)}, {"crop_size": (4, 4, 4), "max_voxels": 0}]:
        with pytest.raises(ValueError, match="positive"):
            OverlappingViews(**settings)
    with pytest.raises(ValueError, match="one image"):
        OverlappingViewsd(["image", "label"])


def test_the_dictionary_form_hands_on_only_views_and_names():
    data = {"image": numbered((9, 9, 9)), "body": torch.ones(1, 9, 9, 9), "case": "a", "label": torch.ones(1, 9, 9, 9)}
    items = OverlappingViewsd("image", crop_size=[4, 4, 4], max_voxels=16, num_pairs=3)(data)
    assert len(items) == 3
    for item in items:
        assert set(item) == {"view_1", "view_2", "voxels_1", "voxels_2", "positions", "case"} and item["case"] == "a"


def test_one_seed_gives_one_result_and_compose_forwards_it():
    data = {"image": numbered((20, 20, 20)), "body": blob((20, 20, 20))}
    transform = OverlappingViewsd(crop_size=(6, 6, 6), max_voxels=8)
    assert isinstance(transform, Randomizable)
    results = []
    for seed in (1, 1, 2):
        copy = pickle.loads(pickle.dumps(transform))
        composed = Compose([copy])
        composed.set_random_state(seed)
        results.append(composed(data)[0])
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    assert not torch.equal(results[0]["view_1"], results[2]["view_1"])


def test_a_data_loader_makes_one_batch_of_all_pairs():
    data = [{"image": numbered((9, 9, 9)), "body": torch.ones(1, 9, 9, 9), "case": str(i)} for i in range(2)]
    dataset = Dataset(data, OverlappingViewsd(crop_size=(4, 4, 4), max_voxels=16, num_pairs=3))
    batch = next(iter(DataLoader(dataset, batch_size=2, collate_fn=list_data_collate)))
    assert batch["view_1"].shape == (6, 1, 4, 4, 4) and batch["voxels_2"].shape == (6, 16, 3)
    assert batch["case"] == ["0"] * 3 + ["1"] * 3
