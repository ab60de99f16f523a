import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    CastToTyped,
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    RandSpatialCropd,
    ScaleIntensityd,
    Transform,
)

from custom_components.data import DataError, MemoryMappedDataset, cache
from custom_components.data.cache import CacheError
from custom_components.transforms import CheckScand


def pipeline(scale=1.0, crop=4):
    return Compose(
        [
            LoadImaged("image", image_only=True),
            EnsureChannelFirstd("image"),
            CheckScand("image"),
            Orientationd("image", axcodes="RAS"),
            ScaleIntensityd("image", maxv=scale),
            CastToTyped("image", dtype=torch.float16),
            RandSpatialCropd("image", roi_size=(crop,) * 3, random_size=False),
        ]
    )


@pytest.fixture
def scans(tmp_path):
    items = []
    affine = np.diag([-2.0, -1.5, 3.0, 1.0])
    for i in range(3):
        volume = np.random.default_rng(i).normal(size=(8, 9, 7)).astype(np.float32)
        path = tmp_path / f"case_{i}.nii.gz"
        nib.save(nib.Nifti1Image(volume, affine), path)
        items.append({"image": str(path), "case": f"case_{i}", "annotated_labels": [1, 2]})
    return items


def test_items_equal_what_the_transforms_give_without_a_cache(scans, tmp_path):
    dataset = MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    for i, item in enumerate(scans):
        direct = Compose(pipeline().transforms[:-1])(dict(item))
        stored = dataset._cachecheck(item)
        assert torch.equal(stored["image"].as_tensor(), direct["image"].as_tensor())
        assert stored["image"].dtype == torch.float16
        assert torch.allclose(stored["image"].affine, direct["image"].affine)
        assert (stored["case"], stored["annotated_labels"]) == (item["case"], [1, 2])
        assert dataset[i]["image"].shape == (1, 4, 4, 4)


def test_volumes_are_memory_mapped_and_writing_to_an_item_leaves_the_file(scans, tmp_path):
    dataset = MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    item = dataset._cachecheck(scans[0])
    assert isinstance(item["image"], MetaTensor)
    before = item["image"].clone()
    item["image"][:] = 7
    assert torch.equal(dataset._cachecheck(scans[0])["image"], before)


def test_a_second_dataset_reads_no_source_file(scans, tmp_path, monkeypatch):
    MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    monkeypatch.setattr(LoadImaged, "__call__", lambda *args, **kwargs: pytest.fail("the source was read again"))
    assert len(MemoryMappedDataset(scans, pipeline(crop=3), tmp_path / "cache", progress=False)[0]) == 3


def test_a_file_is_prepared_once_however_a_command_names_it(scans, tmp_path, monkeypatch):
    dataset = MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    monkeypatch.chdir(tmp_path)
    relative = {**scans[0], "image": "case_0.nii.gz"}
    assert dataset.item_folder(relative) == dataset.item_folder(scans[0]) != dataset.item_folder(scans[1])


@pytest.mark.parametrize("change", ["transform", "file"])
def test_a_change_of_transforms_or_source_makes_a_new_item(scans, tmp_path, change):
    old = MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    folder = old.item_folder(scans[0])
    if change == "file":
        nib.save(nib.Nifti1Image(np.random.rand(8, 9, 7).astype(np.float32), np.eye(4)), scans[0]["image"])
        os.utime(scans[0]["image"], ns=(1, 1))
    new = MemoryMappedDataset(
        scans, pipeline(2.0 if change == "transform" else 1.0), tmp_path / "cache", progress=False
    )
    assert new.item_folder(scans[0]) != folder
    expected = 2.0 if change == "transform" else 1.0
    assert new._cachecheck(scans[0])["image"].max() == expected


def test_settings_of_random_transforms_do_not_invalidate_the_cache(scans, tmp_path):
    first = MemoryMappedDataset(scans, pipeline(crop=4), tmp_path / "cache", progress=False)
    second = MemoryMappedDataset(scans, pipeline(crop=3), tmp_path / "cache", progress=False)
    assert first.item_folder(scans[1]) == second.item_folder(scans[1])


def test_a_failed_item_leaves_nothing_half_written(scans, tmp_path, monkeypatch):
    def disk_full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", disk_full)
    with pytest.raises(CacheError, match=r"cache: prepared scans cannot be written \(.*No space left.*--cache_dir$"):
        MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_all_damaged_files_are_named_at_once_before_anything_runs(scans, tmp_path):
    for item, value in ((scans[0], np.nan), (scans[1], 5.0)):
        volume = np.full((4, 4, 4), 5.0, dtype=np.float32)
        volume[0, 0, 0] = value
        nib.save(nib.Nifti1Image(volume, np.eye(4)), item["image"])
    content = open(scans[2]["image"], "rb").read()
    with open(scans[2]["image"], "wb") as file:
        file.write(content[: len(content) // 2])
    with pytest.raises(DataError) as error:
        MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    for item, line in zip(scans, lines):
        assert os.path.basename(item["image"]) in line
    assert "NaN" in lines[0] or "finite" in lines[0]
    assert "5" in lines[1]


def test_a_missing_item_is_built_again(scans, tmp_path):
    dataset = MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    shutil.rmtree(dataset.item_folder(scans[0]))
    assert dataset[0]["image"].shape == (1, 4, 4, 4)


def test_an_item_of_which_a_file_was_removed_is_made_anew_at_the_next_start(scans, tmp_path):
    dataset = MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    expected = dataset._cachecheck(scans[0])["image"].clone()
    (dataset.item_folder(scans[0]) / "image.npy").unlink()
    (dataset.item_folder(scans[1]) / "image.npy").write_bytes(b"cut")
    again = MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    assert torch.equal(again._cachecheck(scans[0])["image"], expected)
    assert again._cachecheck(scans[1])["image"].shape == expected.shape


def test_prepared_scans_are_used_while_the_folder_of_the_scans_cannot_be_reached(scans, tmp_path):
    dataset = MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    os.rename(scans[0]["image"], tmp_path / "away.nii.gz")
    assert dataset[0]["image"].shape == (1, 4, 4, 4)


def test_a_scan_that_changes_while_it_is_prepared_is_refused(scans, tmp_path):
    class Changing(Transform):
        def __call__(self, item):
            os.utime(scans[0]["image"], (0, 0))
            return item

    transform = Compose([Changing(), *pipeline().transforms])
    with pytest.raises(DataError, match="changed while it was prepared"):
        MemoryMappedDataset(scans[:1], transform, tmp_path / "cache", progress=False)


def test_other_code_makes_new_items(scans, tmp_path, monkeypatch):
    dataset = MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    before = dataset.item_folder(scans[0])
    assert MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False).item_folder(scans[0]) == before
    monkeypatch.setattr(cache, "_digest_of_code", lambda: "of a later version")
    assert MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False).item_folder(scans[0]) != before
    assert {"cache.py", "body.py", "loading.py"} <= {path.name for path in cache.CODE}


def test_a_slice_that_changes_in_a_folder_makes_a_new_item(scans, tmp_path):
    dataset = MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    series = tmp_path / "series"
    series.mkdir()
    (series / "1.dcm").write_bytes(b"first")
    before = dataset.item_folder({"image": str(series)})
    (series / "2.dcm").write_bytes(b"second")
    assert dataset.item_folder({"image": str(series)}) != before


def test_what_a_killed_process_left_is_removed_a_day_later(scans, tmp_path):
    old, new = tmp_path / "cache" / "partial_old", tmp_path / "cache" / "partial_new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    MemoryMappedDataset(scans, pipeline(), tmp_path / "cache", progress=False)
    assert new.is_dir() and not old.exists()
