import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, SaveImaged, Spacingd
from scipy.ndimage import map_coordinates

from custom_components.data import LoadScand
from custom_components.transforms import LogitsToLabel, LogitsToLabeld
from custom_components.transforms.restore import logits_to_label


def rotation(degrees):
    x, y, z = np.deg2rad(degrees)
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rz = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return rx @ ry @ rz


GRIDS = {
    "RAS": np.diag([1.5, 2.0, 2.5]),
    "LPS": np.diag([-1.5, -2.0, 2.5]),
    "permuted": np.array([[0, 0, 2.5], [-1.5, 0, 0], [0, 2.0, 0]]),
    "flipped": np.diag([1.5, -2.0, -2.5]),
    "oblique": rotation([20, -10, 30]) @ np.diag([1.5, 2.0, 2.5]),
}


def affine_of(name):
    affine = np.eye(4)
    affine[:3, :3] = GRIDS[name]
    affine[:3, 3] = [-13.0, 7.5, 100.25]
    return affine


def test_the_highest_positive_logit_gives_the_label():
    logits = torch.tensor([[-1.0, 2.0, 0.5], [-2.0, 1.0, 3.0]]).reshape(2, 1, 1, 3)
    assert logits_to_label(logits).flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("slab_voxels", [1, 10, 1 << 20])
def test_a_label_is_the_same_in_slabs(slab_voxels):
    logits = np.random.default_rng(0).normal(size=(3, 9, 2, 5)).astype(np.float16)
    expected = np.where(logits.max(0) > 0, logits.argmax(0) + 1, 0)
    label = logits_to_label(torch.from_numpy(logits), slab_voxels)
    assert label.dtype == torch.uint8 and np.array_equal(label[0], expected)
    label = LogitsToLabel(slab_voxels)(torch.from_numpy(logits), np.eye(4), np.eye(4), (9, 2, 5))
    assert np.array_equal(label[0], expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("slab_voxels", [1, 100, 1 << 20])
def test_resampling_equals_scipy_at_the_voxel_centres(slab_voxels, dtype):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 9, 7, 8)).astype(dtype)
    affine, target_affine, shape = affine_of("oblique"), np.diag([-1.1, 1.3, -0.9, 1.0]), (6, 5, 9)
    target_affine[:3, 3] = affine[:3, 3] + affine[:3, :3] @ [4, 3, 4] + [3, -3, 4]
    grid = np.stack(np.meshgrid(*[np.arange(s) for s in shape], indexing="ij"), -1)
    index = (np.linalg.inv(affine) @ target_affine @ np.append(grid, np.ones((*shape, 1)), -1)[..., None])[..., :3, 0]
    index = np.clip(index, 0, np.array(logits.shape[1:]) - 1)
    sampled = np.stack([map_coordinates(c, np.moveaxis(index, -1, 0), order=1) for c in logits.astype(float)])
    expected = np.where(sampled.max(0) > 0, sampled.argmax(0) + 1, 0)
    clear = np.abs(np.sort(sampled, 0)[-1] - np.sort(sampled, 0)[-2]) > 1e-4
    clear &= np.abs(sampled.max(0)) > 1e-4
    label = LogitsToLabel(slab_voxels)(torch.from_numpy(logits), affine, target_affine, shape)
    assert clear.mean() > 0.95
    assert np.array_equal(label[0].numpy()[clear], expected[clear])
    assert np.allclose(label.affine, target_affine)


def test_a_single_slice_is_not_divided_by_zero():
    logits = torch.ones(1, 4, 4, 1)
    label = LogitsToLabel()(logits, np.eye(4), np.diag([0.5, 0.5, 1, 1]), (8, 8, 1))
    assert (label == 1).all()


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
@pytest.mark.parametrize("grid", list(GRIDS))
def test_a_saved_label_lies_on_the_input_whatever_its_grid(tmp_path, grid, dtype):
    """A blob at known patient coordinates goes through preprocessing, 'network', restoring and writing."""
    affine, shape = affine_of(grid), (24, 18, 16)
    index = np.stack(np.meshgrid(*[np.arange(s) for s in shape], indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    centre = affine[:3, :3] @ [14, 8, 6] + affine[:3, 3]
    distance = np.linalg.norm((world - centre) / [13, 12, 13], axis=-1)
    volume = (120 * np.exp(-(distance**2))).astype(dtype)
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(volume, affine), path)
    keys = "image"
    item = Compose(
        [
            LoadImaged(keys, image_only=True),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS"),
            Spacingd(keys, pixdim=(1.0, 1.0, 1.0), mode="bilinear"),
        ]
    )({"image": str(path)})
    item["pred"] = item["image"] - 60  # positive within the blob's half maximum
    item = LogitsToLabeld("pred")(item)
    options = {"output_postfix": "seg", "separate_folder": False, "resample": False, "print_log": False}
    SaveImaged("pred", output_dir=tmp_path, writer="custom_components.data.ExactNiftiWriter", **options)(item)
    saved = nib.load(tmp_path / "scan_seg.nii.gz")
    assert saved.shape == shape
    for form in (saved.get_sform(), saved.get_qform()):
        assert np.allclose(form, affine, atol=1e-4)
    found = np.asarray(saved.dataobj) == 1
    expected = volume > 60
    assert expected.sum() > 200
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.96
    assert np.abs(world[found].mean(0) - world[expected].mean(0)).max() < 0.2  # mm


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2)])
def test_a_label_lies_where_a_scan_without_a_place_does_in_every_program(tmp_path, codes):
    """Both codes 0: every program has its own guess, which must be the same for the scan and its label."""
    qform, sform = codes
    scan = nib.Nifti1Image(np.random.default_rng(0).integers(0, 99, (8, 9, 10)).astype(np.int16), None)
    scan.header.set_zooms((1, 2, 3))
    scan.set_qform(scan.affine if qform else None, qform)
    scan.set_sform(scan.affine if sform else None, sform)
    nib.save(scan, tmp_path / "scan.nii.gz")
    item = Compose(
        [
            LoadScand("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.5, 1.5, 1.5), mode="bilinear"),
        ]
    )({"image": str(tmp_path / "scan.nii.gz")})
    item = LogitsToLabeld("pred")({**item, "pred": item["image"] - 40})
    options = {"output_postfix": "seg", "separate_folder": False, "resample": False, "print_log": False}
    SaveImaged("pred", output_dir=tmp_path, writer="custom_components.data.ExactNiftiWriter", **options)(item)
    first, saved = (nib.load(tmp_path / name).header for name in ("scan.nii.gz", "scan_seg.nii.gz"))
    assert (int(saved["qform_code"]), int(saved["sform_code"])) == ((0, 0) if codes == (0, 0) else (1, 1))
    np.testing.assert_allclose(saved["pixdim"][1:4], first["pixdim"][1:4])
    np.testing.assert_allclose(nib.load(tmp_path / "scan_seg.nii.gz").affine, scan.affine, atol=1e-5)
