"""The label-efficiency grid on phantoms, through the bundle's own configs."""

import csv
import json

import pytest
import torch

from custom_components.data import read_datalist, split_datalist
from custom_components.metrics import seen_scans
from scripts.label_efficiency import label_efficiency

from .conftest import CLASSES, SMALL

pytestmark = pytest.mark.slow


def test_a_grid_is_trained_scored_drawn_and_not_trained_again(
    mri_phantoms, pretrained, tmp_path, monkeypatch, capsys, caplog
):
    settings = {**SMALL, **CLASSES, "dataset_dir": str(mri_phantoms), "output_dir": str(tmp_path), "num_labelled": 2}
    held_out = split_datalist(read_datalist(mri_phantoms), "test")
    state = torch.load(pretrained / "model.pt", weights_only=True)
    torch.save({key: value * 1.01 for key, value in state.items()}, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(json.dumps({"seen_scans": seen_scans(held_out)}))
    grid = {"backbones": {"released": str(tmp_path / "model.pt")}, "seeds": 0}
    steps = {"finetune": 2}
    label_efficiency(**settings, **grid, heads=["linear", "finetune"], steps=steps, jobs=2)
    (message,) = [message for message in caplog.messages if "have the names of scans" in message]
    assert message.startswith(f"{tmp_path / 'model.pt'}: 1 of the 1 scans")
    assert any(message.startswith("1 held-out scans are few") for message in caplog.messages)
    with open(tmp_path / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == "bundle backbone head num_labelled seed case class dice hd95_mm".split()
    assert {row["backbone"] for row in rows} == {"untrained", "released"} and len(rows) == 2 * 2 * 6
    with open(tmp_path / "summary.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert (tmp_path / "label_efficiency.png").stat().st_size > 0 and (tmp_path / "label_efficiency.svg").exists()
    assert "difference to scratch" in capsys.readouterr().out
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: pytest.fail("a finished training was run again"))
    label_efficiency(**settings, **grid, heads=["linear", "finetune"], steps=steps)
