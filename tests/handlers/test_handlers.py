import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.engines import Evaluator
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import RandGaussianNoise

from custom_components.errors import InputError
from custom_components.handlers import (
    BestWeights,
    EarlyValidation,
    FreezeBackbone,
    GradientClipping,
    LastCheckpoint,
    ReleaseWeights,
)
from custom_components.networks import SegmentationNetwork, read_weights
from custom_components.transforms import BatchAugmentation, RandInPaint


def trainer(network, epochs=2, length=3):
    """A small ignite engine with the attributes that MONAI's trainers have."""
    optimizer = torch.optim.SGD(network.parameters(), 1.0)

    def step(engine, batch):
        optimizer.zero_grad()
        (100 * network(batch).square().sum()).backward()
        optimizer.step()

    engine = Engine(step)
    engine.optimizer = optimizer
    engine.state.rank = 0
    engine.state.device = torch.device("cpu")
    engine.state.max_epochs, engine.state.epoch_length = epochs, length
    engine.start = lambda: engine.run([torch.ones(1, 2)] * length, max_epochs=epochs, epoch_length=length)
    return engine


def test_gradients_are_clipped_before_every_step():
    network = torch.nn.Linear(2, 1)
    before = [p.detach().clone() for p in network.parameters()]
    engine = trainer(network, epochs=1, length=1)
    GradientClipping(0.5).attach(engine)
    engine.start()
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(network.parameters(), before)])
    assert moved.norm() == pytest.approx(0.5, abs=1e-4)


def test_a_float16_training_goes_on_with_the_scale_of_its_gradients(tmp_path):
    """Begun anew at 65536, its first steps would be left out."""
    network = torch.nn.Linear(2, 1)

    def started(epochs, scaler):
        engine = trainer(network, epochs=epochs, length=1)
        engine.scaler = scaler
        LastCheckpoint(tmp_path, {"network": network}).attach(engine)
        engine.start()
        return scaler

    started(1, torch.amp.GradScaler("cpu", init_scale=512.0))
    assert started(2, torch.amp.GradScaler("cpu")).get_scale() == 512
    started(3, None)  # a checkpoint of another precision is gone on from, too
    assert started(4, torch.amp.GradScaler("cpu", init_scale=64.0)).get_scale() == 64
    started(5, torch.amp.GradScaler("cpu", enabled=False))


@pytest.mark.parametrize(("epochs", "frozen"), [(None, [True] * 3), (0, [False] * 3), (2, [True, True, False])])
def test_the_backbone_is_frozen_for_the_first_epochs(epochs, frozen):
    network = SegmentationNetwork(1, base_channels=2, num_scales=1)
    seen = []
    engine = Engine(lambda engine, batch: seen.append(not network.backbone.first_conv.weight.requires_grad))
    FreezeBackbone(network, epochs).attach(engine)
    engine.run([0], max_epochs=3)
    assert seen == frozen


def test_a_training_killed_between_checkpoints_loses_only_what_followed_the_last(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)
    engine = trainer(network, epochs=4)
    LastCheckpoint(tmp_path, {"network": network, "optimizer": engine.optimizer}, seed=3).attach(engine)

    @engine.on(Events.ITERATION_COMPLETED(once=8))
    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.start()
    assert not list(tmp_path.glob("*.partial"))
    again = torch.nn.Linear(2, 1)
    second = trainer(again, epochs=4)
    steps = []
    second.add_event_handler(Events.ITERATION_COMPLETED, lambda: steps.append(second.state.iteration))
    LastCheckpoint(tmp_path, {"network": again, "optimizer": second.optimizer}, seed=3).attach(second)
    second.start()
    assert steps == list(range(7, 13))


def test_a_training_that_diverges_keeps_its_last_checkpoint(tmp_path):
    network = torch.nn.Linear(2, 1)
    engine = trainer(network, epochs=4)
    LastCheckpoint(tmp_path, {"network": network}).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: network.weight.data.fill_(float("nan")))
    with pytest.raises(
        InputError, match=r"last.pt: the training diverged: weight is not finite after step 6; the checkp"
    ):
        engine.start()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["trainer"]["iteration"] == 3 and state["network"]["weight"].isfinite().all()


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    network = torch.nn.Linear(2, 1)
    engine = trainer(network)
    LastCheckpoint(tmp_path, {"network": network}).attach(engine)

    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")

    engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: monkeypatch.setattr(torch, "save", full))
    with pytest.raises(
        InputError, match=r"last.pt: cannot be written \(unexpected pos 64 vs 0\); the one before it is ke"
    ):
        engine.start()
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 3


def test_of_two_trainings_in_one_folder_the_second_to_save_stops(tmp_path):
    network, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    engine, second = trainer(network), trainer(other, epochs=1)
    LastCheckpoint(tmp_path, {"network": network}).attach(engine)
    LastCheckpoint(tmp_path, {"network": other}).attach(second)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: second.start())
    with pytest.raises(InputError, match="last.pt: another training has written it meanwhile, and two cannot share"):
        engine.start()
    kept = torch.load(tmp_path / "last.pt", weights_only=True)["network"]
    assert all(torch.equal(kept[key], value) for key, value in other.state_dict().items())


def test_what_a_killed_process_left_half_written_is_removed_once_it_is_old(tmp_path):
    old, new = tmp_path / "last.pt.server.1.partial", tmp_path / "last.pt.server.2.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    network = torch.nn.Linear(2, 1)
    engine = trainer(network)
    LastCheckpoint(tmp_path, {"network": network}).attach(engine)
    engine.start()
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", new.name}


def test_a_checkpoint_that_was_removed_meanwhile_is_written_again(tmp_path):
    network = torch.nn.Linear(2, 1)
    engine = trainer(network)
    LastCheckpoint(tmp_path, {"network": network}).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: (tmp_path / "last.pt").unlink())
    engine.start()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 6


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x02cos\nsystem\n."])
def test_a_damaged_checkpoint_is_named(content, tmp_path):
    network = torch.nn.Linear(2, 1)
    engine = trainer(network)
    LastCheckpoint(tmp_path, {"network": network}).attach(engine)
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"last.pt: is damaged or no checkpoint \(.*remove it to begin anew"):
        engine.start()
    assert (tmp_path / "last.pt").read_bytes() == content


def test_a_training_that_begins_anew_keeps_the_checkpoint_that_was_there(tmp_path):
    network = torch.nn.Linear(2, 1)
    for options in ({}, {"resume": False}, {"resume": False, "put_aside": False}):
        engine = trainer(network, epochs=1)
        LastCheckpoint(tmp_path, {"network": network}, **options).attach(engine)
        engine.start()
    aside = [path for path in tmp_path.glob("last_*.pt")]
    assert len(aside) == 1 and torch.load(aside[0], weights_only=True)["trainer"]["iteration"] == 3


def test_another_number_of_processes_is_told(tmp_path, monkeypatch, caplog):
    network = torch.nn.Linear(2, 1)
    for epochs, processes in ((1, 4), (2, 4), (3, 1)):
        monkeypatch.setattr("custom_components.handlers.checkpoints.num_processes", lambda count=processes: count)
        engine = trainer(network, epochs=epochs)
        LastCheckpoint(tmp_path, {"network": network}).attach(engine)
        engine.start()
        assert ("was written by 4 processes and this training has 1" in caplog.text) == (processes == 1)


def test_a_checkpoint_of_another_epoch_length_is_refused(tmp_path):
    network = torch.nn.Linear(2, 1)
    for length in (3, 5):
        engine = trainer(network, epochs=1, length=length)
        LastCheckpoint(tmp_path, {"network": network}).attach(engine)
        if length == 3:
            engine.start()
    message = "of 3 steps an epoch, and this max_steps makes it 5; go on with --steps_per_epoch 3 --max_steps 6$"
    with pytest.raises(InputError, match=message):
        engine.start()


def test_what_is_advised_for_a_longer_training_is_longer(tmp_path):
    """At 2 steps an epoch 7 steps are 4 epochs of 1, fewer than the 6 that were done."""
    network = torch.nn.Linear(2, 1)
    for epochs, length in ((3, 2), (4, 1)):
        engine = trainer(network, epochs=epochs, length=length)
        LastCheckpoint(tmp_path, {"network": network}).attach(engine)
        if length == 2:
            engine.start()
    with pytest.raises(InputError, match="--steps_per_epoch 2 --max_steps 8$"):
        engine.start()


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    """The same output folder for a fine-tuning and a probe: nothing is trained on, and nothing written."""
    network = torch.nn.Linear(2, 1)
    for head in ("linear", "nonlinear"):
        engine = trainer(network, epochs=1)
        LastCheckpoint(tmp_path, {"network": network}, settings={"head": head, "crop": (1, 2)}).attach(engine)
        if head == "linear":
            engine.start()
            before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(InputError, match="head=linear, this one has head=nonlinear; .* another output_dir"):
        engine.start()
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("path", "sha256", "refused"),
    [
        ("b/model.pt", "0a", None),
        ("a/model.pt", "missing", None),
        ("a/model.pt", "1b", "that started from another file a/model.pt, which has been replaced"),
        ("b/model.pt", "1b", "with pretrained=a/model.pt, this one has pretrained=b/model.pt"),
        (None, None, "with pretrained=a/model.pt, this one has pretrained=None"),
    ],
)
def test_the_content_of_the_file_that_a_training_starts_from_decides_not_its_place(tmp_path, path, sha256, refused):
    network = torch.nn.Linear(2, 1)
    start = {"pretrained": "a/model.pt", "pretrained_sha256": "0a"}
    engine = trainer(network, epochs=1)
    LastCheckpoint(tmp_path, {"network": network}, settings=start).attach(engine)
    engine.start()
    engine = trainer(network, epochs=2)
    last = LastCheckpoint(tmp_path, {"network": network}, settings={"pretrained": path, "pretrained_sha256": sha256})
    last.attach(engine)
    if refused:
        with pytest.raises(InputError, match=refused):
            engine.start()
    else:
        engine.start()
        assert engine.state.epoch == 2
        saved = torch.load(tmp_path / "last.pt", weights_only=True)["settings"]
        assert saved["pretrained_sha256"] == "0a"


def test_a_shorter_training_leaves_the_checkpoint_of_a_longer_one(tmp_path):
    network = torch.nn.Linear(2, 1)
    for epochs in (3, 2):
        engine = trainer(network, epochs=epochs)
        LastCheckpoint(tmp_path, {"network": network}).attach(engine)
        if epochs == 3:
            engine.start()
    with pytest.raises(InputError, match="after 9 steps, more than the 6"):
        engine.start()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 9


def test_a_prolonged_training_follows_the_schedule_of_its_new_length(tmp_path):
    rates = []
    for steps in (6, 12):
        network = torch.nn.Linear(2, 1)
        engine = trainer(network, epochs=steps // 3)
        schedule = WarmupCosineSchedule(engine.optimizer, warmup_steps=1, t_total=steps)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _, s=schedule: s.step())
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _, s=schedule: rates.append(s.get_last_lr()[0]))
        content = {"network": network, "optimizer": engine.optimizer, "schedule": schedule}
        LastCheckpoint(tmp_path, content).attach(engine)
        engine.start()
    expected = [0.5 * (1 + np.cos(np.pi * (step - 1) / 11)) for step in range(7, 13)]
    assert rates[6:] == pytest.approx(expected, abs=1e-6)


def test_what_was_drawn_before_a_restart_is_not_drawn_again(tmp_path):
    network, drawn = torch.nn.Linear(2, 1), []
    for epochs in (1, 2):
        engine = trainer(network, epochs=epochs)
        noise = RandGaussianNoise(prob=1.0).set_random_state(3)
        engine.data_loader = SimpleNamespace(dataset=SimpleNamespace(transform=noise))
        engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda _, noise=noise: drawn.append(noise.R.random_sample())
        )
        LastCheckpoint(tmp_path, {"network": network}, seed=3).attach(engine)
        engine.start()
    assert len(drawn) == len(set(drawn)) == 6


def test_validation_is_done_first_now_and_then_and_at_the_end():
    seen = []
    loader = SimpleNamespace(dataset=Dataset([1], transform=RandGaussianNoise(prob=1.0)))

    class Validator(Evaluator):
        def __init__(self):
            self.data_loader = loader

        def run(self, epoch):
            seen.append((epoch, loader.dataset.transform.R.random_sample(), on_device.R.random_sample()))

    on_device = BatchAugmentation([RandInPaint()])
    engine = trainer(torch.nn.Linear(2, 1), epochs=5, length=1)
    EarlyValidation(Validator(), interval=2, seed=1, augmentation=on_device).attach(engine)
    engine.start()
    assert [epoch for epoch, *_ in seen] == [1, 2, 4, 5]
    assert len({numbers[1:] for numbers in seen}) == 1  # every time the same crops and boxes


@pytest.mark.parametrize(("scans", "interval"), [([], 1), ([1], 0)])
def test_validation_is_left_out_where_there_is_no_scan_for_it_or_it_is_not_wanted(scans, interval):
    class Validator(Evaluator):
        def __init__(self):
            self.data_loader = SimpleNamespace(dataset=scans)

        def run(self, epoch):
            raise AssertionError("nothing to validate")

    engine = trainer(torch.nn.Linear(2, 1), epochs=2, length=1)
    EarlyValidation(Validator(), interval=interval).attach(engine)
    engine.start()


def test_resume_false_starts_anew(tmp_path):
    network = torch.nn.Linear(2, 1)
    for _ in range(2):
        engine = trainer(network, epochs=1)
        seen = []
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine, seen=seen: seen.append(1))
        LastCheckpoint(tmp_path, {"network": network}, resume=False).attach(engine)
        engine.start()
        assert len(seen) == 3


def evaluated(metric):
    return SimpleNamespace(state=SimpleNamespace(metrics={"dice": metric}, key_metric_name="dice", rank=0))


def test_the_best_network_is_kept_also_over_a_restart(tmp_path):
    network = torch.nn.Linear(1, 1, bias=False)
    best = BestWeights(network, tmp_path)
    for value, metric in ((1.0, 0.5), (2.0, 0.7), (3.0, 0.6)):
        network.weight.data.fill_(value)
        best(evaluated(metric))
    (tmp_path / "last.pt").touch()
    restarted = BestWeights(network, tmp_path)
    restarted(evaluated(0.65))
    stored = torch.load(tmp_path / "best.pt", weights_only=True)
    assert (stored["metric"], stored["network"]["weight"].item()) == (0.7, 2.0)


@pytest.mark.parametrize("resume", [True, False])
def test_the_best_network_of_a_training_without_a_checkpoint_is_another_training_s(tmp_path, resume):
    network = torch.nn.Linear(1, 1, bias=False)
    BestWeights(network, tmp_path)(evaluated(0.9))
    if not resume:
        (tmp_path / "last.pt").touch()
    network.weight.data.fill_(3.0)
    BestWeights(network, tmp_path, resume)(evaluated(0.2))
    stored = torch.load(tmp_path / "best.pt", weights_only=True)
    assert (stored["metric"], stored["network"]["weight"].item()) == (pytest.approx(0.2), 3.0)


@pytest.mark.parametrize(("selection", "value"), [("best", 2.0), ("last", 3.0)])
def test_the_released_network_is_the_one_asked_for(tmp_path, selection, value):
    network = torch.nn.Linear(1, 1, bias=False)
    best = BestWeights(network, tmp_path / "checkpoints")
    network.weight.data.fill_(2.0)
    best(evaluated(0.9))
    network.weight.data.fill_(3.0)
    engine = trainer(network, epochs=1)
    release = ReleaseWeights(network, tmp_path / "model.pt", selection, tmp_path / "checkpoints", {"data": "some"})
    release(engine)
    assert read_weights(tmp_path / "model.pt")["weight"].item() == value
    record = json.loads((tmp_path / "model.json").read_text())
    assert (record["data"], record["selection"]) == ("some", selection)
    assert {"sha256", "command", "minutes", "machine", "torch", "monai"} <= set(record)


def test_weights_are_not_said_to_be_the_best_where_nothing_was_validated(tmp_path):
    ReleaseWeights(torch.nn.Linear(1, 1), tmp_path / "model.pt", "best", tmp_path)(trainer(torch.nn.Linear(1, 1), 1))
    assert json.loads((tmp_path / "model.json").read_text())["selection"] == "last"


def test_the_command_of_a_finished_training_leaves_its_weights_as_they_are(tmp_path):
    network = torch.nn.Linear(2, 1)
    for _ in range(2):
        engine = trainer(network, epochs=1)
        GradientClipping(0.5).attach(engine)  # without it, this training diverges
        release = ReleaseWeights(network, tmp_path / "model.pt")
        LastCheckpoint(tmp_path, {"network": network, "release": release}).attach(engine)
        release.attach(engine)
        engine.start()
        if release.steps_made:
            before = (tmp_path / "model.json").read_text(), (tmp_path / "model.pt").stat().st_mtime_ns
    assert release.steps_made == 0
    assert ((tmp_path / "model.json").read_text(), (tmp_path / "model.pt").stat().st_mtime_ns) == before


def test_a_prolonged_training_killed_before_it_wrote_its_weights_replaces_the_shorter_one_s(tmp_path):
    network = torch.nn.Linear(2, 1)
    for epochs, killed in ((1, False), (2, True), (2, False)):
        engine = trainer(network, epochs=epochs)
        GradientClipping(0.5).attach(engine)
        release = ReleaseWeights(network, tmp_path / "model.pt")
        LastCheckpoint(tmp_path, {"network": network, "release": release}).attach(engine)
        if not killed:
            release.attach(engine)
        engine.start()
    assert release.steps_made == 0
    assert json.loads((tmp_path / "model.json").read_text())["steps"] == 6
    assert torch.allclose(read_weights(tmp_path / "model.pt")["weight"], network.weight.half())


def test_training_time_adds_up_over_restarts():
    first = ReleaseWeights(torch.nn.Linear(1, 1), "model.pt")
    second = ReleaseWeights(torch.nn.Linear(1, 1), "model.pt")
    second.load_state_dict({"seconds": first.state_dict()["seconds"] + 100})
    assert second.state_dict()["seconds"] >= 100


def test_what_the_start_of_a_training_has_seen_is_known_after_a_restart_without_it():
    first = ReleaseWeights(torch.nn.Linear(1, 1), "model.pt", settings={"seen_scans": "0a 1b"})
    second = ReleaseWeights(torch.nn.Linear(1, 1), "model.pt", settings={"seen_scans": "0a"})
    second.load_state_dict(first.state_dict())
    assert second.settings["seen_scans"] == "0a 1b"


def test_an_unknown_selection_is_refused():
    with pytest.raises(ValueError, match="'best' or 'last'"):
        ReleaseWeights(torch.nn.Linear(1, 1), "model.pt", selection="first")
