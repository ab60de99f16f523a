"""The rows of the ablation on phantoms, through the bundles' own configs."""

import csv
import json

import pytest

from custom_components.errors import InputError
from custom_components.evidence import pretrain_rows
from scripts.ablation import BUNDLES, ablation

from .conftest import CLASSES, SMALL


@pytest.mark.slow
def test_rows_differ_in_what_they_say_and_are_probed_alike(mri_phantoms, tmp_path, monkeypatch, capsys):
    given = {"output_dir": str(tmp_path), "dataset_dir": str(mri_phantoms), "max_steps": 2, "num_labelled": 2}
    given |= {"rows": ["local_augmentations", "balanced"], "heads": "linear"}
    ablation(**given, **SMALL, jobs=2, class_names=CLASSES["class_names"])
    switches = {}
    for name in given["rows"]:
        record = json.loads((tmp_path / "pretraining" / name / "model.json").read_text())
        switches[name] = tuple(record[key] for key in ("local_augmentations", "balanced", "restoration_weight"))
    assert switches == {"local_augmentations": (True, False, 0), "balanced": (False, True, 0)}
    with open(tmp_path / "summary.csv", newline="") as file:
        assert {row["backbone"] for row in csv.DictReader(file)} == {"untrained", *given["rows"]}
    assert "local_augmentations" in capsys.readouterr().out
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: pytest.fail("what is finished was run again"))
    ablation(**given, **SMALL, class_names=CLASSES["class_names"])
    with pytest.raises(InputError, match="pretraining/local_augmentations: was made with settings=.*use the same"):
        ablation(**{**given, "max_steps": 3}, **SMALL, class_names=CLASSES["class_names"])


def test_what_is_wrong_is_told_before_any_pretraining(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: pytest.fail("a pre-training was run"))
    wrong = {"heads": "linar", "bundle": "hippocampus", "num_labelled": "few", "pretraining": "mri", "jobs": 0}
    told = [
        "linar came",
        "hippocampus: is no segmentation",
        "few came",
        "mri: is no bundle",
        "jobs: must be at least 1",
    ]
    for (option, value), sentence in zip(wrong.items(), told, strict=True):
        with pytest.raises(InputError, match=sentence):
            ablation(str(tmp_path), "data", **{option: value})


def test_an_unknown_row_or_config_is_named(tmp_path):
    with pytest.raises(InputError, match="rows: must be of vox2vec, .* but nonsense came"):
        pretrain_rows(BUNDLES / "mri_dense_ssl", tmp_path, {}, rows=["nonsense"])
    with pytest.raises(InputError, match="high_resolution.json: no such config"):
        pretrain_rows(BUNDLES / "mri_dense_ssl", tmp_path, {}, overrides=["high_resolution"])
