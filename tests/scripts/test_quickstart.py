"""The quick start, with few phantoms and steps."""

import csv

import pytest

from custom_components.data import PHANTOM_CLASSES
from custom_components.errors import InputError
from scripts.quickstart import quickstart


@pytest.mark.slow
def test_the_quick_start_ends_with_a_table_and_a_picture_and_replaces_an_earlier_one(tmp_path, capfd):
    (tmp_path / "made_by_quickstart").touch()
    (tmp_path / "pretrain" / "checkpoints").mkdir(parents=True)
    (tmp_path / "pretrain" / "checkpoints" / "last.pt").write_text("of an earlier quick start")
    quickstart(str(tmp_path), num_phantoms=5, num_labelled=2, pretrain_steps=2, finetune_steps=2)
    with open(tmp_path / "dice.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["organ", "pretrained", "untrained"]
    assert [row[0] for row in rows[1:]] == [*PHANTOM_CLASSES, "mean Dice"]
    assert (tmp_path / "overlay.png").stat().st_size > 10_000
    assert list((tmp_path / "pretrained" / "unseen").glob("*_seg.nii.gz"))
    assert "Finished in" in capfd.readouterr().out


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="is not empty and not an earlier quick start"):
        quickstart(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
