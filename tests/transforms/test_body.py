from __future__ import annotations

import pickle
from collections import deque
from itertools import product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components.transforms import BodyMask, BodyMaskd
from custom_components.transforms.body import fill_axial_holes, keep_large, mri_threshold, otsu_threshold


def regions_by_search(mask: np.ndarray) -> list[list[tuple[int, ...]]]:
    """Connected regions of an array of any dimension, voxel by voxel."""
    seen, regions = set(), []
    for start in zip(*np.nonzero(mask), strict=True):
        if start in seen:
            continue
        region, queue = [], deque([start])
        seen.add(start)
        while queue:
            voxel = queue.popleft()
            region.append(voxel)
            for axis, step in product(range(mask.ndim), (-1, 1)):
                near = tuple(v + step * (a == axis) for a, v in enumerate(voxel))
                if all(0 <= v < n for v, n in zip(near, mask.shape, strict=True)) and mask[near] and near not in seen:
                    seen.add(near)
                    queue.append(near)
        regions.append(region)
    return regions


def slow_body(tissue: np.ndarray, min_island: float) -> np.ndarray:
    kept = np.zeros(tissue.shape, dtype=bool)
    regions = regions_by_search(tissue)
    largest = max(map(len, regions), default=0)
    for region in regions:
        if len(region) >= min_island * largest:
            kept[tuple(np.array(region).T)] = True
    filled = kept.copy()
    for k in range(kept.shape[2]):
        for hole in regions_by_search(~kept[:, :, k]):
            border = any(v in (0, n - 1) for voxel in hole for v, n in zip(voxel, kept.shape[:2], strict=True))
            if not border:
                filled[(*np.array(hole).T, k)] = True
    return filled


def torso(shape=(40, 36, 10)) -> tuple[np.ndarray, np.ndarray]:
    """A CT in HU with lungs that reach the last slice and a table, and the true body."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij")
    volume = np.full(shape, -1000.0)
    body = np.broadcast_to(((x / 0.7) ** 2 + (y / 0.6) ** 2 < 1)[..., None], shape).copy()
    volume[body] = 40
    volume[((x + 0.2) ** 2 + y**2 < 0.04), 3:] = -850
    volume[8:-8, -2, :] = -300
    return volume, body


@pytest.mark.parametrize("density", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("shape", [(9, 11, 5), (1, 8, 3), (7, 1, 2), (6, 5, 1), (1, 1, 1)])
def test_the_ct_mask_is_that_of_a_voxel_by_voxel_search(density, shape):
    random = np.random.default_rng(int(10 * density) + sum(shape))
    tissue = random.random(shape) < density
    mask = BodyMask("CT")(np.where(tissue, 40.0, -1000.0)[None])
    expected = slow_body(tissue, 0.1)
    assert mask.dtype == torch.uint8 and mask.shape == (1, *shape)
    assert np.array_equal(mask[0].numpy(), expected if expected.any() else np.ones(shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int16])
def test_lungs_belong_to_the_body_and_the_table_does_not(dtype):
    volume, body = torso()
    assert np.array_equal(BodyMask("CT")(volume[None].astype(dtype))[0].numpy(), body)


def test_a_body_that_touches_every_border_of_the_slice_keeps_its_lungs():
    volume, body = torso()
    crop = (slice(11, 29), slice(11, 25))
    assert body[crop].all() and (volume[crop] < -500).any()
    assert BodyMask("CT")(volume[crop][None]).all()


def test_air_at_a_corner_stays_air_where_the_body_cuts_it_in_pieces():
    volume = np.full((1, 6, 6, 2), 40.0)
    volume[0, 0, 0] = volume[0, 5, 5] = volume[0, 3, 3] = -1000
    mask = BodyMask("CT")(volume)[0]
    assert not mask[0, 0].any() and not mask[5, 5].any() and mask[3, 3].all()


def test_a_single_voxel_of_tissue_is_the_body():
    volume = np.full((1, 5, 4, 3), -1000.0)
    volume[0, 2, 1, 1] = 40
    assert torch.equal(BodyMask("CT")(volume), torch.from_numpy(volume > 0).to(torch.uint8))


@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_the_mask_is_never_empty(modality):
    random = np.random.default_rng(0)
    assert BodyMask(modality)(random.uniform(-1000, -900, (1, 6, 5, 4))).any()
    one_voxel = np.zeros((1, 20, 20, 20)) - 1000
    one_voxel[0, 3, 4, 5] = -990
    assert BodyMask(modality)(one_voxel).any()
    assert BodyMask(modality)(np.zeros((1, 3, 3, 3)) - 2000).all()


def test_otsu_is_that_of_scikit_image():
    filters = pytest.importorskip("skimage.filters")
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0, 1, 3000), random.normal(6, 2, 1000)])
    assert otsu_threshold(values) == pytest.approx(filters.threshold_otsu(values), abs=np.ptp(values) / 256)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.001, 0.0), (500.0, -300.0)])
def test_the_mri_mask_separates_air_from_tissue_in_any_unit(scale, shift):
    random = np.random.default_rng(0)
    _, body = torso((50, 46, 9))
    muscle_and_fat = np.where(random.random(body.shape) < 0.5, 300, 900) + random.normal(0, 20, body.shape)
    volume = np.where(body, muscle_and_fat, np.abs(random.normal(0, 20, body.shape)))
    volume[20:24, 22:24] = 0  # cortical bone
    mask = BodyMask("MRI")((scale * volume + shift)[None].astype(np.float32))[0].numpy()
    assert np.array_equal(mask, body)


def test_an_mri_crop_full_of_tissue_keeps_the_fluid_at_its_border():
    random = np.random.default_rng(0)
    volume = random.normal(600, 60, (30, 40, 30))
    volume[:6, :8, :12] = random.normal(60, 10, (6, 8, 12))
    assert BodyMask("MRI")(volume[None]).all()


def test_a_few_bright_voxels_do_not_move_the_mri_threshold():
    random = np.random.default_rng(0)
    volume = np.where(random.random((20, 20, 20)) < 0.5, 0.0, 500.0) + random.normal(0, 10, (20, 20, 20))
    before = mri_threshold(volume)
    volume.flat[::1000] = 30000
    assert mri_threshold(volume) == pytest.approx(before, abs=5)


def test_helpers_keep_masks_without_regions():
    empty = np.zeros((3, 4, 5), dtype=bool)
    assert not keep_large(empty, fraction=0.1).any()
    assert not fill_axial_holes(empty).any()
    assert fill_axial_holes(~empty).all()


def test_a_scaled_ct_and_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="scan.nii.gz: .*before intensity scaling"):
        BodyMask("CT")(MetaTensor(torch.rand(1, 4, 4, 4), meta={"filename_or_obj": "scan.nii.gz"}))
    with pytest.raises(ValueError, match="PET"):
        BodyMask("PET")
    with pytest.raises(ValueError, match=r"\(4, 4, 4\)"):
        BodyMask("CT")(torch.rand(4, 4, 4))
    with pytest.raises(ValueError, match="one image"):
        BodyMaskd(["image", "label"])


def test_the_dictionary_form_adds_the_mask_and_leaves_the_image():
    volume, body = torso()
    image = MetaTensor(torch.from_numpy(volume)[None], affine=torch.diag(torch.tensor([2.0, 2, 5, 1])))
    transform = pickle.loads(pickle.dumps(BodyMaskd("image", body_key="patient", modality="CT")))
    result = transform({"image": image})
    assert result["image"] is image and np.array_equal(result["patient"][0].numpy(), body)
    assert isinstance(result["patient"], MetaTensor) and torch.equal(result["patient"].affine, image.affine)


@pytest.mark.parametrize(
    ("folder", "modality", "low", "high"),
    [
        ("Task04_Hippocampus", "MRI", 0.9, 1.0),
        ("SoftTissueSarcoma_MRI", "MRI", 0.2, 0.97),
        ("SoftTissueSarcoma_CT", "CT", 0.1, 0.97),
        ("OpenKBP", "CT", 0.02, 0.3),
    ],
)
def test_real_scans_have_a_plausible_body_that_holds_their_labels(real_data, folder, modality, low, high):
    nibabel = pytest.importorskip("nibabel")
    images = sorted((real_data / folder / "imagesTr").glob("*.nii.gz"))[:3]
    if not images:
        pytest.skip(f"{folder} is not among the real scans")
    for path in images:
        body = BodyMask(modality)(np.asarray(nibabel.load(path).dataobj, dtype=np.float32)[None])[0].numpy()
        label = np.asarray(nibabel.load(path.parents[1] / "labelsTr" / path.name).dataobj) > 0
        assert low <= body.mean() <= high, path.name
        assert body[label].mean() > 0.97, path.name
