import pytest
import torch
from monai.data import Dataset
from monai.engines import SupervisedEvaluator

from custom_components.engines import SoundScans
from custom_components.errors import InputError
from custom_components.metrics import SegmentationScores


def load(item):
    if item["value"] < 0:
        raise RuntimeError("applying a transform") from InputError(f"{item['image']}: is negative; invert it")
    return {key: torch.full((1, 2, 2, 2), item["value"]) for key in ("image", "label")} | {"case": item["case"]}


def evaluation(values, path):
    """Score one constant scan a value, of one class; a network that changes nothing is right where that is 1."""
    dataset = Dataset([{"image": f"{case}.nii", "case": case, "value": value} for case, value in values.items()], load)
    scans = SoundScans(dataset)
    evaluator = SupervisedEvaluator(
        "cpu",
        scans,
        torch.nn.Identity(),
        epoch_length=len(scans),
        key_val_metric={"mean_dice": SegmentationScores(["one"], path)},
        val_handlers=[scans],
    )
    evaluator.run()
    return scans, evaluator


@pytest.mark.parametrize("values", [{"a": 1}, {"a": 1, "b": 1, "c": 1}])
def test_sound_scans_are_scored_once_each(values, tmp_path):
    scans, evaluator = evaluation(values, tmp_path / "metrics.csv")
    scans.require_all(tmp_path / "metrics.csv")
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == list(values)
    assert evaluator.state.metrics["mean_dice"] == 1


@pytest.mark.parametrize("values", [{"a": -1, "b": 1, "c": 1}, {"b": 1, "a": -1, "c": 1}, {"b": 1, "c": 1, "a": -1}])
def test_one_that_cannot_be_loaded_is_left_out_and_told(values, tmp_path, capsys):
    scans, _ = evaluation(values, tmp_path / "metrics.csv")
    sentence = "a.nii: is negative; invert it"
    assert capsys.readouterr().err.count(sentence) == 1
    with pytest.raises(InputError) as caught:
        scans.require_all(tmp_path / "metrics.csv")
    kept = tmp_path / "incomplete_metrics.csv"
    assert str(caught.value) == f"2 of 3 scans scored, in {kept}; 1 could not be loaded:\n{sentence}"
    assert [row.split(",")[0] for row in kept.read_text().splitlines()[1:]] == ["b", "c"]
    assert not (tmp_path / "metrics.csv").exists()


def test_none_can_be_loaded(tmp_path):
    scans, _ = evaluation({"a": -1, "b": -1}, tmp_path / "metrics.csv")
    with pytest.raises(InputError, match="0 of 2 scans scored"):
        scans.require_all(tmp_path / "metrics.csv")
