"""Scans that weights have seen are recognised by name, and nothing else is."""

import hashlib
import json
from pathlib import Path

from custom_components.data import read_datalist, split_datalist
from custom_components.metrics import seen_among, seen_scans, warn_of_seen

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


def items(*names):
    return [{"case": name, "patient": name.split("_")[0]} for name in names]


def weights_that_saw(seen, folder):
    (folder / "model.json").write_text(json.dumps({"sha256": "0", "seen_scans": seen}))
    return folder / "model.pt"


def test_names_are_digests_of_cases_and_patients():
    expected = {hashlib.sha256(name.encode()).hexdigest()[:8] for name in ("anna_1", "anna", "ben")}
    assert seen_scans(items("anna_1", "ben")).split() == sorted(expected)
    assert seen_scans([{"image": "folder/ben.nii.gz"}]) == hashlib.sha256(b"ben").hexdigest()[:8]


def test_what_the_start_has_seen_is_seen(tmp_path):
    start = weights_that_saw(seen_scans(items("anna_1")), tmp_path)
    assert seen_scans(items("ben"), start) == seen_scans(items("anna_1", "ben"))
    for nothing in (None, "none", tmp_path / "gone.pt"):
        assert seen_scans(items("ben"), nothing) == seen_scans(items("ben"))


def test_another_scan_of_a_patient_is_seen(tmp_path):
    weights = weights_that_saw(seen_scans(items("anna_1", "ben")), tmp_path)
    assert seen_among(items("anna_2", "ben", "carl"), weights) == ["anna_2", "ben"]


def test_a_warning_names_the_first_of_the_scans(tmp_path, caplog):
    weights = weights_that_saw(seen_scans(items("a", "b", "c", "d")), tmp_path)
    warn_of_seen(items("e", "f"), weights)
    assert not caplog.messages
    warn_of_seen(items("a", "b", "c", "d", "e"), weights)
    (message,) = caplog.messages
    assert message.startswith(f"{weights}: 4 of the 5 scans have the names") and "(a, b, c, ...)" in message


def test_a_record_that_does_not_say_what_was_seen_warns_of_nothing(tmp_path):
    (tmp_path / "model.json").write_text('{"sha256": "0"}')
    (tmp_path / "list.json").write_text("[1, 2]")
    for name in ("model.pt", "list.pt", "alone.pt"):
        assert seen_among(items("a"), tmp_path / name) == []


def test_the_released_weights_have_seen_all_of_their_data_but_the_scans_that_were_held_out(real_data):
    for folder, backbone, segmentation in (
        ("Task04_Hippocampus", "mri_dense_ssl", "hippocampus_mri_segmentation"),
        ("OpenKBP", "ct_dense_ssl", "head_neck_ct_segmentation"),
    ):
        datalist = read_datalist(real_data / folder)
        for bundle in (backbone, segmentation):
            weights = BUNDLES / bundle / "models" / "model.pt"
            assert seen_among(split_datalist(datalist, "test"), weights) == []
            trained = split_datalist(datalist, "pretrain")
            assert seen_among(trained, weights) == [item["case"] for item in trained]
