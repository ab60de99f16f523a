import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom_components.data import DataError, read_datalist, split_datalist
from custom_components.data.dataset_json import write_dataset_json
from scripts.dataset_json import dataset_json

PARTS = ("train", "validation", "test")


def add(folder, name, labelled=True):
    for kind in ("imagesTr", "labelsTr")[: 2 if labelled else 1]:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.eye(4)), folder / kind / name)


@pytest.fixture
def folder(tmp_path):
    """Twelve labelled patients of two scans, and five scans without labels; in a form that is met."""
    for index in range(12):
        add(tmp_path, f"p{index:02d}_s1.nii.gz")
        add(tmp_path, f"p{index:02d}_s2.nii")
    for index in range(20, 25):
        add(tmp_path, f"p{index}_s1.NII.GZ", labelled=False)
    (tmp_path / "imagesTr" / "._p00_s1.nii.gz").write_bytes(b"of macOS")
    return tmp_path


def parts_of(folder, **options):
    items = read_datalist(folder, **options)
    return {item["image"]: part for part in PARTS for item in split_datalist(items, part)}


def test_it_names_scans_labels_classes_and_patients_and_a_split_that_holds_patients_together(folder):
    content = write_dataset_json(folder, ["Liver"], "(.*)_s")
    assert content == json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"0": "background", "1": "Liver"} and len(content["training"]) == 29
    assert content["training"][0]["image"] == "./imagesTr/p00_s1.nii.gz"
    assert content["training"][1]["label"] == "./labelsTr/p00_s2.nii"
    assert "label" not in content["training"][-1] and content["training"][-1]["patient"] == "p24"
    labelled = parts_of(folder, class_names=["Liver"])
    assert len(labelled) == 24
    assert sorted(labelled.values()).count("test") == 4  # two of twelve patients, two scans each
    everything = parts_of(folder, labelled=False)
    assert labelled.items() <= everything.items() and len(everything) == 29


def test_the_split_is_the_one_without_the_file(folder):
    before = parts_of(folder, labelled=False), parts_of(folder, class_names=["Liver"])
    write_dataset_json(folder, ["Liver"])
    assert (parts_of(folder, labelled=False), parts_of(folder)) == before


def test_scans_that_are_added_or_removed_move_no_other(folder):
    write_dataset_json(folder, ["Liver"], "(.*)_s")
    before = parts_of(folder, labelled=False)
    content = json.loads((folder / "dataset.json").read_text())
    content["training"][0]["annotated_labels"] = []
    (folder / "dataset.json").write_text(json.dumps(content))
    for index in range(30, 60):
        add(folder, f"p{index}_s1.nii.gz")
    add(folder, "p03_s9.nii.gz")
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind / "p05_s1.nii.gz").unlink()
    content = write_dataset_json(folder, patient="(.*)_s")
    assert content["labels"]["1"] == "Liver" and content["training"][0]["annotated_labels"] == []
    after = parts_of(folder, labelled=False)
    stayed = before.keys() & after.keys()
    assert len(stayed) == 28 and all(before[image] == after[image] for image in stayed)
    new = {image: part for image, part in after.items() if image not in before}
    of_known = after[str(folder / "imagesTr" / "p03_s9.nii.gz")]
    assert len(new) == 31 and of_known == before[str(folder / "imagesTr" / "p03_s1.nii.gz")]
    assert {part for image, part in new.items() if "p03" not in image} == {"train"}


def test_a_patient_that_was_found_once_is_found_again(folder):
    write_dataset_json(folder, ["Liver"], "(.*)_s")
    before = parts_of(folder, class_names=["Liver"])
    tested = next(image for image, part in before.items() if part == "test")
    name = f"{Path(tested).name.split('_')[0]}_s7.nii.gz"
    add(folder, name)
    write_dataset_json(folder)
    assert parts_of(folder)[str(folder / "imagesTr" / name)] == "test"


def test_scans_of_one_patient_that_were_split_apart_are_refused_and_nothing_moves(folder):
    write_dataset_json(folder, ["Liver"])
    text = (folder / "dataset.json").read_text()
    with pytest.raises(DataError, match="give all scans of a patient the same .* or remove the file to split anew"):
        write_dataset_json(folder, patient="(.*)_s")
    assert (folder / "dataset.json").read_text() == text


def test_scans_elsewhere_stay_and_labels_that_are_gone_go(folder):
    content = write_dataset_json(folder, ["Liver"])
    (folder / "imagesB").mkdir()
    (folder / "imagesTr" / "p24_s1.NII.GZ").rename(folder / "imagesB" / "p24_s1.nii.gz")
    content["training"][-1]["image"] = "./imagesB/p24_s1.nii.gz"
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "labelsTr" / "p00_s1.nii.gz").unlink()
    after = write_dataset_json(folder)["training"]
    assert after[-1] == content["training"][-1] and len(after) == 29
    assert "label" not in after[0] and after[0]["part"] == content["training"][0]["part"]


def test_two_scans_are_no_split(tmp_path):
    for name in "ab":
        add(tmp_path, f"{name}.nii.gz")
    assert [entry["part"] for entry in write_dataset_json(tmp_path)["training"]] == ["train", "train"]


@pytest.mark.parametrize(
    ("options", "text"),
    [({"patient": "x(.*)"}, "finds no patient in the name p00_s1"), ({"patient": "("}, "is no regular expression")],
)
def test_an_expression_that_cannot_be_used_writes_nothing(folder, options, text):
    with pytest.raises(DataError, match=text):
        write_dataset_json(folder, ["Liver"], **options)
    assert not (folder / "dataset.json").exists()


def test_what_the_file_says_wrongly_is_told_and_kept(folder):
    write_dataset_json(folder, ["Liver"])
    text = (folder / "dataset.json").read_text().replace('"part": "test"', '"part": "exam"')
    (folder / "dataset.json").write_text(text)
    with pytest.raises(DataError, match="part must be one of train, validation, test but is 'exam'"):
        write_dataset_json(folder)
    assert (folder / "dataset.json").read_text() == text


def test_the_command_line_says_what_it_wrote_or_why_not(folder, capsys, tmp_path):
    dataset_json(str(folder), "Liver", "(.*)_s")
    assert "29 scans of 17 patients; train 18 labelled, 3 not" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="dataset_json: .*absent: no such folder"):
        dataset_json(str(tmp_path / "absent"))
