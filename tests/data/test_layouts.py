import shutil

import pytest

from custom_components.data import DataError, read_amos, read_btcv, split_datalist

from ..public_layouts import write_amos, write_btcv


@pytest.fixture(scope="module")
def btcv(tmp_path_factory):
    return write_btcv(tmp_path_factory.mktemp("btcv"), count=3)


@pytest.fixture(scope="module")
def amos(tmp_path_factory):
    return write_amos(tmp_path_factory.mktemp("amos"), mri=3, ct=2)


def test_btcv_is_read_as_it_was_downloaded(btcv):
    items = read_btcv(btcv)
    assert [item["case"] for item in items] == ["img0001", "img0002", "img0003"]
    assert all(item["label"].endswith(item["case"].replace("img", "label") + ".nii.gz") for item in items)
    assert items[0]["annotated_labels"] == list(range(1, 14)) and [item["scan"] for item in items] == [0, 1, 2]
    assert read_btcv(btcv / "RawData" / "Training")[2]["case"] == "img0003"


def test_btcv_in_the_folders_of_the_decathlon(btcv, tmp_path):
    for source, target in (("img", "imagesTr"), ("label", "labelsTr")):
        (tmp_path / target).symlink_to(btcv / "RawData" / "Training" / source)
    assert len(read_btcv(tmp_path)) == 3


def test_amos_gives_the_scans_of_one_modality_of_training_and_validation_part(amos):
    assert [item["case"] for item in read_amos(amos, "MRI")] == ["amos_0508", "amos_0509", "amos_0507"]
    assert [item["case"] for item in read_amos(amos, "CT")] == ["amos_0001", "amos_0002"]
    assert read_amos(amos)[0]["annotated_labels"] == list(range(1, 13))


def test_test_images_of_amos_are_for_pretraining_only(amos, tmp_path):
    for folder in amos.iterdir():
        if folder.is_dir():
            (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / "imagesTs").mkdir()
    shutil.copy(amos / "imagesVa" / "amos_0507.nii.gz", tmp_path / "imagesTs" / "amos_0600.nii.gz")
    assert "amos_0600" not in [item["case"] for item in read_amos(tmp_path)]
    unlabelled = read_amos(tmp_path, labelled=False)
    assert "amos_0600" in [item["case"] for item in unlabelled] and "label" not in unlabelled[0]


def test_folds_are_the_same_whatever_part_a_scan_came_from(amos):
    folds = [split_datalist(read_amos(amos), "test", num_folds=3, fold=fold) for fold in range(3)]
    assert sorted(item["case"] for fold in folds for item in fold) == ["amos_0507", "amos_0508", "amos_0509"]


def test_what_is_missing_is_named(btcv, amos, tmp_path):
    shutil.copytree(btcv, tmp_path / "btcv")
    (tmp_path / "btcv" / "RawData" / "Training" / "label" / "label0002.nii.gz").unlink()
    with pytest.raises(DataError, match="label0002.nii.gz: is listed but there is no such file"):
        read_btcv(tmp_path / "btcv")
    with pytest.raises(DataError, match="no scan of BTCV found; looked for RawData/Training/img"):
        read_btcv(amos)
    with pytest.raises(DataError, match="no MRI scan of AMOS found"):
        read_amos(btcv)
    with pytest.raises(DataError, match="no such folder"):
        read_amos(tmp_path / "absent")
    with pytest.raises(ValueError, match="modality must be"):
        read_amos(amos, "PET")
