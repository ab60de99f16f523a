import logging

import pytest
import torch
from ignite.engine import Events
from monai.data import Dataset
from monai.engines import SupervisedEvaluator

from custom_components.engines import FolderInference
from custom_components.errors import InputError


class Network(torch.nn.Module):
    """Adds 1; fails on the value 5 as a full memory would, and on 6 as the user's Ctrl-C."""

    def forward(self, image):
        if image.max() == 5:
            raise RuntimeError("out of memory\nat some place")
        if image.max() == 6:
            raise KeyboardInterrupt
        return image + 1


def load(item):
    if "fault" in item:
        raise InputError(item["fault"])
    if item["value"] < 0:
        raise RuntimeError("applying a transform") from InputError(f"{item['image']}: is negative; invert it")
    return {"image": torch.full((1, 2, 2, 2), float(item["value"])), "case": item["case"]}


def inference(values, saved, faults=(), folder="output"):
    """Inference on items of one value each, whose results go into `saved`."""

    def save(data):
        if data["pred"].max() == 8:
            raise OSError("No space left on device")
        saved[data["case"]] = data["pred"].max().item()
        return data

    items = [{"image": f"{case}.nii", "case": case, "value": value} for case, value in values.items()]
    items = [item | ({"fault": f"{item['image']}: is broken"} if item["case"] in faults else {}) for item in items]
    dataset = Dataset(items, load)
    evaluator = SupervisedEvaluator("cpu", [], Network(), postprocessing=save)
    return FolderInference(evaluator, dataset, folder)


def test_every_scan_is_processed_and_counted(capsys):
    saved = {}
    assert inference({"a": 1, "b": 2}, saved).run() is None
    assert saved == {"a": 2, "b": 3}
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 2 scans done, results in output"


def test_a_bad_scan_stops_no_other_wherever_it_fails(capsys):
    """While it is loaded (b), in the network (c), while it is saved (d); after each, a good one follows."""
    saved = {}
    values = {"a": 1, "b": -1, "e": 2, "c": 5, "f": 3, "d": 7, "g": 4}
    with pytest.raises(InputError) as caught:
        inference(values, saved).run()
    assert saved == {"a": 2, "e": 3, "f": 4, "g": 5}
    sentences = [
        "b.nii: is negative; invert it",
        "c.nii: could not be processed (RuntimeError: out of memory)",
        "d.nii: could not be processed (OSError: No space left on device)",
    ]
    assert str(caught.value).splitlines() == ["4 of 7 scans done, results in output; 3 failed:", *sentences]
    told = capsys.readouterr().err
    assert all(told.count(sentence) == 1 for sentence in sentences)


def test_known_faults_are_told_before_the_first_scan_is_processed(capsys):
    saved = {}
    with pytest.raises(InputError, match="1 of 2 scans done"):
        inference({"a": 1, "b": 2}, saved, faults="b").run()
    told = capsys.readouterr().err
    assert told.index("b.nii: is broken") < told.index("a: ") and saved == {"a": 2}


def test_only_bad_scans_are_an_error_too():
    with pytest.raises(InputError, match=r"0 of 1 scans done, results in output; 1 failed:\na.nii: is broken"):
        inference({"a": 1}, {}, faults="a").run()


def test_the_user_can_stop_it():
    saved = {}
    with pytest.raises(KeyboardInterrupt):
        inference({"a": 1, "b": 6, "c": 2}, saved).run()
    assert saved == {"a": 2}


def test_afterwards_the_evaluator_is_as_before():
    """Errors that nobody else would tell are raised again, and no result is held in memory."""
    run = inference({"a": 5}, {})
    with pytest.raises(InputError):
        run.run()
    assert run.evaluator.data_loader == [] and run.evaluator.state.output is None
    assert not run.evaluator.has_event_handler(run._take_error, Events.EXCEPTION_RAISED)


def test_an_error_is_told_once_and_not_logged_by_the_engine_too(caplog):
    with caplog.at_level(logging.ERROR), pytest.raises(InputError):
        inference({"a": 5}, {}).run()
    assert not caplog.records
