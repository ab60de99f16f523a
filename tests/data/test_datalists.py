import gzip
import json
import os
import time
import unicodedata

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage

from custom_components.data import (
    DataError,
    LoadScan,
    LoadScand,
    class_names_of,
    list_scans,
    read_datalist,
    scan_grid,
    split_datalist,
)

from ..scan_files import AXES, SPACING, volume, write_mha, write_nrrd, write_series

NAMES = ["Liver", "Spleen"]


def write_scan(path, shape=(6, 7, 8), affine=None, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones(shape, dtype), np.eye(4) if affine is None else affine), path)
    return path


def write_json(folder, cases, names=NAMES, **other):
    entries = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases]
    labels = {str(i): name for i, name in enumerate(["background", *names])}
    (folder / "dataset.json").write_text(json.dumps({"training": entries, "labels": labels} | other))


@pytest.fixture
def folder(tmp_path):
    """Three small labelled scans: a, b and c."""
    root = tmp_path / "set"
    for case in "abc":
        write_scan(root / "imagesTr" / f"{case}.nii.gz")
        write_scan(root / "labelsTr" / f"{case}.nii.gz", dtype=np.uint8)
    write_json(root, "abc")
    return root


def faults_of(*args, **kwargs):
    with pytest.raises(DataError) as caught:
        read_datalist(*args, **kwargs)
    return str(caught.value).splitlines()


def test_a_decathlon_folder_gives_one_item_a_scan(folder):
    items = read_datalist(folder, NAMES)
    assert [item["case"] for item in items] == ["a", "b", "c"]
    assert [item["scan"] for item in items] == [0, 1, 2]
    assert items[1] == {
        "image": str(folder / "imagesTr" / "b.nii.gz"),
        "label": str(folder / "labelsTr" / "b.nii.gz"),
        "case": "b",
        "patient": "b",
        "folder": str(folder),
        "annotated_labels": [1, 2],
        "scan": 1,
    }


def test_annotated_labels_are_those_of_the_scan_and_all_where_it_names_none(folder):
    content = json.loads((folder / "dataset.json").read_text())
    content["training"][1]["annotated_labels"] = [2]
    content["training"][2]["annotated_labels"] = []
    (folder / "dataset.json").write_text(json.dumps(content))
    assert [item["annotated_labels"] for item in read_datalist(folder)] == [[1, 2], [2], []]


@pytest.mark.parametrize("wrong", [[0], [3], ["1"], [True], "12", 1])
def test_annotated_labels_that_are_no_classes_are_a_fault(folder, wrong):
    content = json.loads((folder / "dataset.json").read_text())
    content["training"][1]["annotated_labels"] = wrong
    (folder / "dataset.json").write_text(json.dumps(content))
    (line,) = faults_of(folder)
    assert "b.nii.gz: annotated_labels must be a list of values from 1 to 2" in line


def test_unlabelled_reading_ignores_the_labels(folder):
    (folder / "labelsTr" / "a.nii.gz").unlink()
    write_scan(folder / "labelsTr" / "b.nii.gz", (2, 2, 2))
    items = read_datalist(folder, labelled=False)
    assert len(items) == 3
    assert all("label" not in item and "annotated_labels" not in item for item in items)


def test_a_plain_folder_of_scans_is_read_in_the_order_of_names(tmp_path):
    for name in ("b.nii", "a.nii.gz", "notes.txt", "._a.nii.gz", "c.NII.GZ"):
        if name[0] in "abc":
            write_scan(tmp_path / name.lower()).rename(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(b"something else")
    assert [item["case"] for item in read_datalist(tmp_path, labelled=False)] == ["a", "b", "c"]


def test_a_folder_without_dataset_json_pairs_imagesTr_with_labelsTr_by_name(folder):
    (folder / "dataset.json").unlink()
    items = read_datalist(folder, NAMES)
    assert [item["label"] for item in items] == [str(folder / "labelsTr" / f"{c}.nii.gz") for c in "abc"]
    assert items[0]["annotated_labels"] == [1, 2]
    (line,) = faults_of(folder)
    assert "names of the classes are unknown" in line and '"labels": {' in line
    for label in (folder / "labelsTr").iterdir():
        label.unlink()
    assert faults_of(folder, NAMES) == [
        f"{folder}: none of its 3 scans has a label; add them, such as labelsTr/a.nii.gz"
    ]


@pytest.mark.parametrize("listed", [True, False], ids=["dataset.json", "plain"])
def test_scans_with_and_without_labels_share_a_folder(folder, listed, caplog):
    """The labelled ones are segmented from; a pre-training takes all, and holds the same labelled ones out."""
    cases = [f"{i:02d}" for i in range(40)]
    for case in cases:
        write_scan(folder / "imagesTr" / f"{case}.nii.gz")
        if case < "10":
            write_scan(folder / "labelsTr" / f"{case}.nii.gz", dtype=np.uint8)
    if listed:
        write_json(folder, ["a", "b", "c", *cases[:10]])
        content = json.loads((folder / "dataset.json").read_text())
        content["training"] += [{"image": f"imagesTr/{case}.nii.gz"} for case in cases[10:]]
        (folder / "dataset.json").write_text(json.dumps(content))
    else:
        (folder / "dataset.json").unlink()
    labelled = read_datalist(folder, NAMES)
    assert len(labelled) == 13 and "30 of its 43 scans have no label" in caplog.text
    unlabelled = read_datalist(folder, labelled=False)
    assert len(unlabelled) == 43
    held_out = {item["case"] for item in split_datalist(labelled, "test")}
    pretrained_on = {item["case"] for item in split_datalist(unlabelled, "pretrain")}
    assert len(held_out) == 3 and len(pretrained_on) == 43 - 3 - 6
    assert not held_out & pretrained_on


def test_a_label_that_was_forgotten_in_the_list_is_a_fault(folder):
    content = json.loads((folder / "dataset.json").read_text())
    del content["training"][1]["label"]
    (folder / "dataset.json").write_text(json.dumps(content))
    (line,) = faults_of(folder)
    assert "b.nii.gz: a label was expected" in line and '"label" to its entry' in line


def test_scans_beside_the_list_are_told_to_a_pretraining(folder, caplog):
    write_scan(folder / "imagesTr" / "d.nii.gz")
    assert len(read_datalist(folder, labelled=False)) == 3
    assert "dataset.json: scans in imagesTr that it does not list are not used: 1, such as d.nii.gz" in caplog.text


def test_a_plain_folder_may_be_named_by_a_relative_path(folder, monkeypatch):
    (folder / "dataset.json").unlink()
    monkeypatch.chdir(folder.parent)
    assert all(os.path.isfile(item["image"]) for item in read_datalist(folder.name, labelled=False))
    assert all(os.path.isfile(item["label"]) for item in read_datalist(folder.name, NAMES))


@pytest.mark.parametrize("form", ["list", "tuple", "commas", "json", "python", "brackets without quotes"])
def test_several_folders_come_as_a_list_or_as_a_command_line_gives_it(folder, mri_phantoms, form):
    paths = [str(folder), str(mri_phantoms)]
    given = {
        "list": paths,
        "tuple": tuple(paths),
        "commas": ", ".join(paths),
        "json": json.dumps(paths),
        "python": str(tuple(paths)),
        "brackets without quotes": f"[{','.join(paths)}]",
    }[form]
    items = read_datalist(given, labelled=False)
    assert [item["folder"] for item in items] == [paths[0]] * 3 + [paths[1]] * 6
    assert [item["scan"] for item in items] == list(range(9))


def test_a_folder_with_a_comma_in_its_name_is_one_folder(folder):
    renamed = folder.rename(folder.with_name("a, b"))
    assert len(read_datalist(str(renamed))) == 3


def test_a_folder_named_twice_is_read_once(folder):
    assert len(read_datalist([folder, str(folder) + "/"])) == 3


@pytest.mark.parametrize("nothing", [None, 3, [], "", "[]", {}])
def test_a_dataset_dir_that_is_no_folder_is_a_fault(nothing):
    assert "dataset_dir" in faults_of(nothing)[0]


def test_a_missing_folder_is_named(tmp_path):
    (line,) = faults_of(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in line and "no such folder" in line


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    (line,) = faults_of(tmp_path, labelled=False)
    for text in ("no scan found", "dataset.json", "imagesTr", "*.nii.gz"):
        assert text in line


@pytest.mark.parametrize("where", ["a.nrrd", "imagesTr/a.mha", "patient/series/1.dcm"])
def test_a_training_on_scans_of_another_format_says_how_to_convert_them(where, tmp_path):
    file = tmp_path / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(128) + b"DICM" + bytes(100))
    (line,) = faults_of(tmp_path, labelled=False)
    named = file.parent if file.suffix == ".dcm" else file
    assert f"NIfTI scans were expected but {named} is none" in line and "dcm2niix" in line


@pytest.mark.parametrize("where", ["", "imagesTr"])
def test_scans_of_other_formats_beside_those_that_are_read_are_told(where, tmp_path, caplog):
    place = tmp_path / where
    write_scan(place / "a.nii.gz")
    assert len(read_datalist(tmp_path, labelled=False)) == 1 and not caplog.messages
    write_nrrd(place / "b.nrrd")
    write_series(place / "series")
    assert len(read_datalist(tmp_path, labelled=False)) == 1
    (message,) = caplog.messages
    assert "no NIfTI files are not used: 2, such as b.nrrd" in message and "dcm2niix" in message


def test_the_patient_of_a_scan_is_the_one_named_in_its_entry_or_else_its_case(folder):
    training = [{"image": "./imagesTr/a.nii.gz", "patient": 7}, {"image": "./imagesTr/b.nii.gz"}, "imagesTr/c.nii.gz"]
    write_json(folder, [], training=training)
    assert [item["patient"] for item in read_datalist(folder, labelled=False)] == ["7", "b", "c"]


@pytest.mark.parametrize("patient", [None, "", 1.5, True, ["a"]])
def test_a_patient_without_a_name_is_a_fault(patient, folder):
    write_json(folder, [], training=[{"image": "./imagesTr/a.nii.gz", "patient": patient}])
    (line,) = faults_of(folder, labelled=False)
    assert "patient must be a name or a number" in line and "a.nii.gz" in line


def test_results_that_lie_beside_their_scans_are_not_taken_for_scans(tmp_path, caplog):
    for name in ("a", "a_seg", "b_seg", "a_features"):
        write_scan(tmp_path / f"{name}.nii.gz")
    assert [item["case"] for item in list_scans(tmp_path)] == ["a", "b_seg"]
    assert [item["case"] for item in read_datalist(tmp_path, labelled=False)] == ["a", "b_seg"]
    assert "left out as labels or features, and no scans: 2, such as a_features.nii.gz" in caplog.text


def test_a_link_that_leads_nowhere_is_a_scan_that_is_missing(tmp_path):
    """Such as one of git-annex whose content was not fetched."""
    write_scan(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to(tmp_path / "elsewhere" / "b.nii.gz")
    (line,) = faults_of(tmp_path, labelled=False)
    assert "b.nii.gz: is listed but there is no such file" in line
    assert ["fault" in item for item in list_scans(tmp_path)] == [False, True]


def test_a_single_class_comes_in_a_list(folder):
    """A command line gives text, whose letters would be taken for classes."""
    (line,) = faults_of(folder, class_names="Cyst")
    assert "class_names: a list of names was expected" in line and "--class_names \"['Cyst']\"" in line


def test_an_empty_training_list_is_a_fault(folder):
    write_json(folder, [])
    assert "no scan found" in faults_of(folder)[0]


def test_dataset_json_that_is_not_json_is_a_fault(folder):
    (folder / "dataset.json").write_text('{"training": [')
    (line,) = faults_of(folder)
    assert "dataset.json: not valid JSON" in line
    (folder / "dataset.json").write_bytes(b"\xff\xfe\x00bad")
    assert "not valid JSON" in faults_of(folder)[0]
    (folder / "dataset.json").write_text("[1]")
    assert "must hold a JSON object but holds a list" in faults_of(folder)[0]


@pytest.mark.parametrize("key", ["training", "labels"])
def test_a_missing_key_is_named_with_the_form_it_should_have(folder, key):
    content = json.loads((folder / "dataset.json").read_text())
    del content[key]
    (folder / "dataset.json").write_text(json.dumps(content))
    (line,) = faults_of(folder)
    assert f'"{key}"' in line and "missing" in line and f'"{key}": ' in line


def test_unlabelled_reading_needs_no_labels_in_dataset_json_and_takes_plain_names(folder):
    (folder / "dataset.json").write_text(
        json.dumps({"training": ["imagesTr/a.nii.gz", {"image": "imagesTr/c.nii.gz"}]})
    )
    assert [item["case"] for item in read_datalist(folder, labelled=False)] == ["a", "c"]


@pytest.mark.parametrize(
    "expected", [["Spleen", "Liver"], ["Liver"], ["liver", "Spleen"], ["Liver", "Spleen", "Aorta"]]
)
def test_other_classes_than_expected_show_both(folder, expected):
    (line,) = faults_of(folder, expected)
    assert str(expected) in line and str(NAMES) in line and "dataset.json" in line


def test_folders_with_different_classes_cannot_be_read_together_with_labels(folder, mri_phantoms):
    assert "Bladder" in faults_of([folder, mri_phantoms])[0]
    assert len(read_datalist([folder, mri_phantoms], labelled=False)) == 9


def test_class_names_come_in_the_order_of_their_values(folder):
    write_json(folder, "abc", ["B", "A"])
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"2": "A", "0": "background", "1": "B", "10": "J"} | {str(i): f"x{i}" for i in range(3, 10)}
    (folder / "dataset.json").write_text(json.dumps(content))
    assert class_names_of(folder) == ["B", "A", *(f"x{i}" for i in range(3, 10)), "J"]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({"0": "background", "1": "A", "3": "B"}, "without a gap"),
        ({"0": "background"}, "without a gap"),
        ({"background": 0, "A": 1}, "whole numbers"),
        ({"1": "A", "2": "A"}, "a name of its own"),
        (["background", "A"], "not an object"),
    ],
)
def test_bad_label_values_are_a_fault(folder, labels, text):
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"labels": labels}))
    with pytest.raises(DataError, match=text):
        class_names_of(folder)


def test_every_fault_is_in_one_message(folder):
    (folder / "imagesTr" / "a.nii.gz").unlink()
    (folder / "labelsTr" / "b.nii.gz").write_bytes(b"")
    write_scan(folder / "imagesTr" / "c.nii.gz", (6, 7, 9))
    write_scan(folder / "labelsTr" / "d.nii.gz")
    lines = faults_of([folder, folder / "nowhere"], NAMES)
    assert len(lines) == 5
    for name, text in {
        "imagesTr/a.nii.gz": "no such file",
        "labelsTr/b.nii.gz": "no readable NIfTI header",
        "imagesTr/c.nii.gz": "image is (6, 7, 9) but label is (6, 7, 8); resample one to the other",
        "labelsTr/d.nii.gz": "label without an image in the list",
        "nowhere": "no such folder",
    }.items():
        assert any(str(folder / name) in line and text in line for line in lines), lines


@pytest.mark.parametrize("damage", ["empty", "truncated gzip", "no gzip", "text in gzip", "folder"])
def test_an_unreadable_header_is_a_fault_of_one_line(folder, damage):
    path = folder / "imagesTr" / "b.nii.gz"
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        damaged = {"empty": b"", "truncated gzip": content[:30], "no gzip": b"x" * 400, "text in gzip": None}[damage]
        path.write_bytes(gzip.compress(b"no scan" * 100) if damaged is None else damaged)
    (line,) = faults_of(folder)
    assert line.startswith(f"{path}: ")


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 8, 3), (6, 7, 8, 1, 3)])
def test_what_is_not_3d_is_a_fault(folder, shape):
    write_scan(folder / "imagesTr" / "a.nii.gz", shape)
    (line,) = faults_of(folder)
    assert "a 3D scan was expected" in line and str(nib.load(folder / "imagesTr" / "a.nii.gz").shape) in line


def test_a_fourth_axis_of_one_is_fine_because_monai_reads_it_as_the_channel(folder):
    path = write_scan(folder / "imagesTr" / "a.nii.gz", (6, 7, 8, 1))
    assert nib.load(path).shape == (6, 7, 8, 1)
    assert read_datalist(folder)[0]["case"] == "a"
    assert tuple(LoadImage(image_only=True, ensure_channel_first=True)(str(path)).shape) == (1, 6, 7, 8)


def test_an_image_and_a_label_at_different_places_are_a_fault(folder):
    moved = np.eye(4)
    moved[0, 3] = 0.11
    write_scan(folder / "labelsTr" / "a.nii.gz", affine=moved)
    flipped = np.diag([-1.0, 1, 1, 1])
    write_scan(folder / "labelsTr" / "b.nii.gz", affine=flipped)
    hair = np.eye(4)
    hair[0, 3] = 0.09
    write_scan(folder / "labelsTr" / "c.nii.gz", affine=hair)
    lines = faults_of(folder)
    assert len(lines) == 2
    assert "a.nii.gz" in lines[0] and "0.11 mm" in lines[0] and "copy the image's header to the label" in lines[0]
    assert "b.nii.gz" in lines[1] and "10 mm" in lines[1]  # the far corner, x = 5, is at x = -5


def test_a_spacing_that_differs_shows_at_the_far_corner(folder):
    write_scan(folder / "labelsTr" / "a.nii.gz", affine=np.diag([1, 1, 1.02, 1]))
    (line,) = faults_of(folder)
    assert "0.14 mm" in line  # 7 steps of 0.02 mm


def test_a_label_nearly_on_the_grid_is_loaded_exactly_on_it(folder):
    """A program that rounds headers moves a label by hundredths of a mm; resampled, it would have another shape."""
    rounded = np.diag([1, 1, 1.01, 1])
    label = write_scan(folder / "labelsTr" / "a.nii.gz", affine=rounded, dtype=np.uint8)
    item = LoadScand(["image", "label"])(read_datalist(folder)[0])
    np.testing.assert_array_equal(item["label"].affine.numpy(), np.eye(4))
    assert LoadScand(["image", "label"], allow_missing_keys=True)({"case": "none"}) == {"case": "none"}
    alone = LoadScand("label")({"label": str(label)})
    np.testing.assert_allclose(alone["label"].affine.numpy(), rounded)


def write_without_place(path, dtype=np.int16):
    scan = nib.Nifti1Image(np.ones((6, 7, 8), dtype), None)
    scan.header.set_zooms((1, 2, 3))
    nib.save(scan, path)
    assert int(nib.load(path).header["qform_code"]) == int(nib.load(path).header["sform_code"]) == 0


def test_scans_that_do_not_say_how_they_lie_are_told_once(folder, caplog):
    for kind, dtype in {"imagesTr": np.int16, "labelsTr": np.uint8}.items():
        for case in "ab":
            write_without_place(folder / kind / f"{case}.nii.gz", dtype)
    assert len(read_datalist(folder)) == 3
    (message,) = caplog.messages
    assert message.startswith("2 of 3 scans do not say how they lie") and "a.nii.gz" in message
    caplog.clear()
    list_scans(folder / "imagesTr" / "c.nii.gz")
    assert not caplog.messages
    list_scans(folder / "imagesTr" / "a.nii.gz")
    assert caplog.messages[0].startswith("1 of 1 scans do not say")


def test_a_label_that_lost_its_place_is_told(folder):
    write_without_place(folder / "labelsTr" / "a.nii.gz", np.uint8)
    (line,) = faults_of(folder)
    assert "labelsTr/a.nii.gz does not say where it lies" in line and "copy the image's header" in line


def test_a_name_of_an_image_and_of_its_label_in_two_unicode_forms_is_one(folder):
    (folder / "dataset.json").unlink()
    for kind, form in {"imagesTr": "NFD", "labelsTr": "NFC"}.items():
        name = unicodedata.normalize(form, "J\u00e4ger.nii.gz")
        (folder / kind / "a.nii.gz").rename(folder / kind / name)
    items = read_datalist(folder, NAMES)
    assert len(items) == 3 and "J\u00e4ger" in [item["case"] for item in items]
    assert LoadScand(["image", "label"])(items[0])["label"].shape == (1, 6, 7, 8)


@pytest.mark.parametrize("wrong", [0.0, np.nan])
def test_a_singular_affine_is_a_fault(folder, wrong):
    path = folder / "imagesTr" / "a.nii.gz"
    scan = nib.Nifti1Image(np.ones((6, 7, 8), np.int16), None)
    scan.header["sform_code"] = 1
    scan.header["srow_x"], scan.header["srow_y"], scan.header["srow_z"] = [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, wrong, 0]
    raw = bytearray(scan.to_bytes())
    raw[:348] = scan.header.binaryblock[:348]
    path.write_bytes(gzip.compress(bytes(raw)))
    (line,) = faults_of(folder)
    assert "a.nii.gz: the affine is singular or not finite" in line


def test_small_voxels_are_no_fault(tmp_path):
    """Of 8 micrometres, as in a micro-CT."""
    write_scan(tmp_path / "a.nii.gz", affine=np.diag([0.008, 0.008, 0.008, 1]))
    assert len(read_datalist(tmp_path, labelled=False)) == 1


def test_colour_and_complex_voxels_are_a_fault(folder):
    write_scan(folder / "imagesTr" / "a.nii.gz", dtype=np.complex64)
    (line,) = faults_of(folder)
    assert "complex64" in line


def test_an_entry_without_label_or_image_is_a_fault(folder):
    entries = [
        {"image": "imagesTr/a.nii.gz"},
        {"label": "labelsTr/b.nii.gz"},
        {"image": ["x", "y"]},
        "imagesTr/c.nii.gz",
    ]
    write_json(folder, [], training=entries)
    for case in "abc":
        (folder / "labelsTr" / f"{case}.nii.gz").unlink()
    lines = faults_of(folder)
    assert len(lines) == 4
    assert "a.nii.gz: a label was expected" in lines[0]
    assert "names no image file" in lines[1] and "names no image file" in lines[2]
    assert "c.nii.gz: a label was expected" in lines[3]


def test_two_scans_of_one_name_in_a_folder_are_a_fault_and_in_two_folders_one_patient(folder, tmp_path):
    write_scan(tmp_path / "mri" / "a.nii.gz")
    assert [i["case"] for i in read_datalist([folder, tmp_path / "mri"], labelled=False)] == ["a", "b", "c", "a"]
    write_scan(tmp_path / "mri" / "a.nii")
    (line,) = faults_of(tmp_path / "mri", labelled=False)
    assert "a.nii: " in line or "a.nii.gz: " in line
    assert "same case name" in line


def write_with_sform_only(path, affine, pixdim, dtype=np.int16):
    """As some converters write it: the sform is right, the qform is declared absent and its fields are not filled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scan = nib.Nifti1Image(np.ones((6, 7, 8), dtype), affine)
    scan.set_sform(affine, 2)
    scan.header["qform_code"] = 0
    scan.header["pixdim"][1:4] = pixdim
    for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        scan.header[name] = 0
    nib.save(scan, path)


@pytest.mark.parametrize("pixdim", [(1, 1, 1), (0.8, 0.9, 2.5)], ids=["unset", "rounded"])
def test_a_scan_and_its_label_with_a_sform_only_are_loaded_where_it_says(folder, pixdim):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = AXES * (0.8001, 0.9004, 2.503), (10, -20, 30)
    for kind, dtype in {"imagesTr": np.int16, "labelsTr": np.uint8}.items():
        write_with_sform_only(folder / kind / "a.nii.gz", affine, pixdim, dtype)
    item = read_datalist(folder)[0]
    header = nib.load(item["image"]).header
    assert header["qform_code"] == 0 and np.allclose(header["pixdim"][1:4], pixdim)  # the file is what is meant
    loaded = LoadScand(["image", "label"])(item)
    for key in ("image", "label"):
        np.testing.assert_allclose(loaded[key].affine.numpy(), affine, atol=1e-5)
        np.testing.assert_array_equal(loaded[key].affine.numpy(), scan_grid(item[key])[1])
        np.testing.assert_array_equal(loaded[key].meta["original_affine"], scan_grid(item[key])[1])


def test_inference_takes_one_file(folder):
    path = folder / "imagesTr" / "a.nii.gz"
    assert list_scans(path) == [{"image": str(path), "case": "a"}]


def test_inference_takes_the_training_and_test_images_of_dataset_json(folder):
    write_scan(folder / "imagesTs" / "t.nii.gz")
    write_scan(folder / "imagesTs" / "u.nii.gz")
    write_json(folder, "ab", test=["./imagesTs/t.nii.gz", {"image": "imagesTs/u.nii.gz"}])
    assert [item["case"] for item in list_scans(folder)] == ["a", "b", "t", "u"]


def test_inference_takes_a_plain_folder_else_its_imagesTr_and_imagesTs(folder):
    (folder / "dataset.json").unlink()
    write_scan(folder / "imagesTs" / "t.nii.gz")
    assert [item["case"] for item in list_scans(folder)] == ["a", "b", "c", "t"]
    write_scan(folder / "own.nii")
    assert [item["case"] for item in list_scans(str(folder))] == ["own"]


def test_inference_names_its_faults(folder, tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        list_scans(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no scan found"):
        list_scans(tmp_path / "empty")
    (folder / "dataset.json").write_text(json.dumps({"test": [{"label": "x"}]}))
    with pytest.raises(DataError, match="names no image file"):
        list_scans(folder)


def test_a_bad_scan_keeps_its_fault_and_the_others_their_place_in_the_list(folder, tmp_path):
    (tmp_path / "note.txt").write_text("no scan")
    (item,) = list_scans(tmp_path / "note.txt")
    assert "note.txt: no readable NIfTI header" in item["fault"]
    write_scan(folder / "imagesTr" / "a.nii")
    (folder / "dataset.json").unlink()
    (folder / "imagesTr" / "b.nii.gz").write_bytes(b"")
    faults = {os.path.basename(item["image"]): item.get("fault") for item in list_scans(folder)}
    assert list(faults) == ["a.nii", "a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert faults["a.nii"] is None and faults["c.nii.gz"] is None
    assert "has the same case name as" in faults["a.nii.gz"] and "no readable NIfTI header" in faults["b.nii.gz"]
    with pytest.raises(DataError, match="same case name"):
        LoadScand("image")({"image": "a.nii.gz", "fault": faults["a.nii.gz"]})


def test_a_bad_scan_does_not_claim_the_case_name_of_a_good_one(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"")
    write_nrrd(tmp_path / "a.nrrd")
    assert ["fault" in item for item in list_scans(tmp_path)] == [True, False]


def test_inference_takes_every_format_of_a_folder(tmp_path):
    write_scan(tmp_path / "a.nii.gz")
    write_nrrd(tmp_path / "b.nrrd")
    write_mha(tmp_path / "c.MHA")
    write_series(tmp_path / "1.2.840.1")
    write_series(tmp_path / "1.2.840.2", suffix=".dcm")
    (tmp_path / "empty").mkdir()
    items = list_scans(tmp_path)
    assert [item["case"] for item in items] == ["1.2.840.1", "1.2.840.2", "a", "b", "c"]
    assert not any("fault" in item for item in items)
    assert [item["case"] for item in list_scans(tmp_path / "1.2.840.1")] == ["1.2.840.1"]


def test_a_series_in_the_current_folder_has_the_name_of_that_folder(tmp_path, monkeypatch):
    write_series(tmp_path / "patient7")
    monkeypatch.chdir(tmp_path / "patient7")
    assert list_scans(".") == [{"image": str(tmp_path / "patient7"), "case": "patient7"}]


def test_dicom_series_are_found_at_any_depth_and_nifti_files_at_the_top_only(tmp_path):
    scans = tmp_path / "scans"
    write_series(scans / "a")
    for name in ("CT", "CT_thin"):
        write_series(scans / "b" / "study" / name)
    write_series(scans / ".trash" / "study" / "old")
    write_series(scans / "b" / ".hidden")
    write_scan(scans / "c.nii.gz")
    write_scan(scans / "b" / "study" / "d.nii.gz")
    (scans / "b" / "again").symlink_to(scans)
    items = list_scans(scans)
    assert [item["case"] for item in items] == ["a", "CT", "CT_thin", "c"]
    assert not any("fault" in item for item in items)


def test_two_series_folders_of_one_name_are_told(tmp_path):
    for patient in ("p1", "p2"):
        write_series(tmp_path / patient / "study" / "SER00001")
    first, second = list_scans(tmp_path)
    assert "fault" not in first
    assert second["fault"].startswith(f"{tmp_path / 'p2' / 'study' / 'SER00001'}: has the same case name as ")


def test_series_below_imagesTr_do_not_keep_its_files_from_the_list(tmp_path):
    write_series(tmp_path / "imagesTr" / "patient" / "CT")
    write_scan(tmp_path / "imagesTr" / "a.nii.gz")
    write_scan(tmp_path / "imagesTs" / "b.nii.gz")
    assert [item["case"] for item in list_scans(tmp_path)] == ["a", "CT", "b"]


@pytest.mark.parametrize("form", [list, tuple, str, lambda paths: ",".join(paths)])
def test_inference_takes_several_folders_and_files(tmp_path, form):
    write_scan(tmp_path / "one" / "a.nii.gz")
    write_scan(tmp_path / "two" / "b.nii.gz")
    file = write_scan(tmp_path / "c.nii.gz")
    items = list_scans(form([str(tmp_path / "two"), str(tmp_path / "one"), str(file)]))
    assert [item["case"] for item in items] == ["b", "a", "c"]
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        list_scans([tmp_path / "one", tmp_path / "nowhere"])


@pytest.mark.parametrize("nothing", [None, 3, []])
def test_inference_on_what_is_no_path_says_what_was_expected(nothing):
    with pytest.raises(DataError, match="must be a folder or a list of folders"):
        list_scans(nothing)


def singular_nrrd(path):
    return write_nrrd(path, directions=(AXES * SPACING)[:, [0, 1, 1]])


def flat_mha(path):
    return write_mha(path, volume((7, 6)))


def coloured_mha(path):
    return write_mha(path, more="ElementNumberOfChannels = 3\n")


def complex_nrrd(path):
    return write_nrrd(path, kind="block", more="block size: 2\n")


def empty_file(path):
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("write", "name", "text"),
    [
        (singular_nrrd, "a.nrrd", "the affine is singular"),
        (flat_mha, "a.mha", r"a 3D scan was expected but its shape is \(7, 6\)"),
        (coloured_mha, "a.mha", "real numbers|floating-point numbers were expected but voxels are"),
        (complex_nrrd, "a.nrrd", "no readable NRRD header"),
        (empty_file, "a.nrrd", "no readable NRRD header"),
        (empty_file, "a.mha", "no readable MetaImage header"),
    ],
)
def test_headers_of_nrrd_and_metaimage_are_checked_like_those_of_nifti(tmp_path, write, name, text):
    (item,) = list_scans(write(tmp_path / name))
    assert item["fault"].startswith(f"{tmp_path / name}: ") and len(item["fault"].splitlines()) == 1
    with pytest.raises(DataError, match=text):
        LoadScand("image")({"image": str(tmp_path / name)})


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_truncated_voxels_are_found_when_a_scan_is_loaded(tmp_path, name):
    path = tmp_path / name
    if name == "a.nii.gz":
        voxels = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    else:
        {"a.nrrd": write_nrrd, "a.mha": write_mha}[name](path)
    path.write_bytes(path.read_bytes()[:-100])
    (item,) = list_scans(path)
    assert "fault" not in item
    with pytest.raises(DataError, match=f"{name}: could not be read") as caught:
        LoadScan()(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "count", "classes"), [("Task04_Hippocampus", 200, 2), ("OpenKBP", 226, 7), ("SoftTissueSarcoma_CT", 40, 1)]
)
def test_real_data_sets_are_read_without_fault_and_fast(real_data, name, count, classes):
    start = time.perf_counter()
    items = read_datalist(real_data / name)
    assert time.perf_counter() - start < 15
    assert len(items) == count and len(class_names_of(real_data / name)) == classes
    assert {label for item in items for label in item["annotated_labels"]} == set(range(1, classes + 1))
    assert len({len(item["annotated_labels"]) for item in items}) == (1 if name != "OpenKBP" else 7)


def test_real_unlabelled_folders_are_read(real_data):
    items = read_datalist([real_data / "Unlabelled" / "CT", real_data / "SoftTissueSarcoma_CT"], labelled=False)
    assert len(items) == 43 and items[0]["case"] == "CRLM-CT-1004_00_CT"
