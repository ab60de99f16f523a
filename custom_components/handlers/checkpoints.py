"""Checkpoints that survive being killed at any moment, and the released weights at the end of a training.

MONAI's `CheckpointSaver` neither writes atomically nor finds the last checkpoint by itself; these do.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.data.utils import set_rnd
from monai.utils import set_determinism
from torch import nn

from custom_components.errors import InputError
from custom_components.files import PARTIAL, whole_file
from custom_components.networks import load_weights, save_checkpoint, save_weights
from custom_components.networks.weight_files import MISSING, not_finite, provenance_path
from custom_components.provenance import git_commit, num_processes, training_record

logger = logging.getLogger(__name__)

# what is read from the weights that a training starts from, which may be gone when it goes on
OF_THE_START = ("seen_scans", "pretrained_sha256")


def _save(content: Any, path: Path) -> None:
    """Write a file that is there whole or not at all, also where two processes write it or the machine fails.

    Raises:
        InputError: it cannot be written; the file that was there is kept.
    """
    try:
        with whole_file(path) as partial:
            torch.save(content, partial)
    except (OSError, RuntimeError) as error:  # PyTorch raises the second where a disk is full
        kept = "the one before it is kept" if path.is_file() else "nothing was saved yet"
        raise InputError(
            f"{path}: cannot be written ({_first_line(error)}); {kept}; free space in its folder and give the "
            "same command again"
        ) from error


def _load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        InputError: it is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path}: is damaged or no checkpoint ({_first_line(error)}); restore it, or remove it to begin anew"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _scaler_of(engine: Any) -> torch.amp.GradScaler | None:
    """The scaler of float16's gradients, where one is in use."""
    scaler = getattr(engine, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


class LastCheckpoint:
    """Save everything a training needs to go on, and go on from it when the training is started again.

    The file is `folder/last.pt`, plain data that loads with `weights_only=True`. On a restart the random numbers
    continue from another seed (that of the training plus the step), so that what was drawn is not drawn again. A
    training may go on for longer than it was first meant to: the learning rate then follows the schedule of the new
    length.

    Args:
        folder: folder of the checkpoint.
        save_dict: objects with `state_dict` and `load_state_dict`: network, optimiser, scheduler, trainer, ...
        interval: epochs between two checkpoints.
        seed: the training's seed.
        resume: False starts anew.
        put_aside: without `resume`, whether a checkpoint that is there is kept under another name, or replaced.
        settings: what makes this training what it is, plain data; a checkpoint with other settings is refused.

    Raises:
        InputError: when the training starts, if the checkpoint is damaged, of another training or of a longer one; and
            where one would be written of a network that is not finite, cannot be written, or would replace that of
            another training that runs in the same folder. The file is kept.
    """

    def __init__(
        self,
        folder: str | Path,
        save_dict: Mapping[str, Any],
        interval: int = 1,
        seed: int = 0,
        resume: bool = True,
        settings: Mapping[str, Any] | None = None,
        put_aside: bool = True,
    ) -> None:
        self.path = Path(folder) / "last.pt"
        self.save_dict, self.interval, self.seed = dict(save_dict), interval, seed
        self.resume, self.put_aside = resume, put_aside
        # as it comes back from the file
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings or {}), default=str))
        self.known: tuple[int, ...] | None = None  # the file that this training has read or written

    def attach(self, engine: Any) -> None:
        self.save_dict["trainer"] = engine
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
        engine.add_event_handler(Events.COMPLETED, self.save)

    def save(self, engine: Any) -> None:
        self._require_finite(engine)
        if engine.state.rank == 0:
            self._require_alone()
            states = {name: item.state_dict() for name, item in self.save_dict.items()}
            if (scaler := _scaler_of(engine)) is not None:
                states["scaler"] = scaler.state_dict()
            _save({**states, "settings": self.settings, "processes": num_processes()}, self.path)
            self.known = self._on_disk()

    def _on_disk(self) -> tuple[int, ...] | None:
        """What tells the file from any other that is written in its place; None where there is none."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns  # not the inode, which is another one every time on some network drives

    def _require_alone(self) -> None:
        if self._on_disk() not in (None, self.known):
            raise InputError(
                f"{self.path}: another training has written it meanwhile, and two cannot share an output_dir; this one "
                "stops, and the checkpoint of the other is kept"
            )

    def _require_finite(self, engine: Any) -> None:
        """On every process alike, so that none waits for one that has stopped."""
        networks = {name: item.state_dict() for name, item in self.save_dict.items() if isinstance(item, nn.Module)}
        wrong = not_finite(networks)
        if wrong:
            kept = "the checkpoint before it is kept" if self.path.is_file() else "nothing was saved yet"
            raise InputError(
                f"{self.path}: the training diverged: {wrong} is not finite after step {engine.state.iteration}; "
                f"{kept}; give the same command to try again with other random numbers, or begin anew with a lower "
                "learning_rate in another output_dir"
            )

    def _remove_remains(self) -> None:
        """What processes that were killed while they wrote have left; no write takes an hour."""
        for partial in self.path.parent.glob(f"*{PARTIAL}"):
            with suppress(FileNotFoundError):  # another process was here first
                if time.time() - partial.stat().st_mtime > 3600:
                    partial.unlink()

    def _put_aside(self) -> None:
        aside = self.path.with_name(f"last_{datetime.now():%Y%m%d_%H%M%S}.pt")
        self.path.replace(aside)
        logger.warning("begins anew; the checkpoint of the training before is kept as %s", aside)

    def load(self, engine: Any) -> None:
        if not self.resume and self.put_aside and self.path.is_file() and engine.state.rank == 0:
            self._put_aside()
        self.known = self._on_disk()
        self._remove_remains()
        if not (self.resume and self.path.is_file()):
            return
        state = _load(self.path)
        max_epochs, epoch_length = engine.state.max_epochs, engine.state.epoch_length
        if self.settings.get("pretrained_sha256") == MISSING:  # what it held is in the checkpoint
            self.settings["pretrained_sha256"] = state.get("settings", {}).get("pretrained_sha256")
        found = {**state.get("settings", {}), "steps_per_epoch": state["trainer"]["epoch_length"]}
        wanted = {**self.settings, "steps_per_epoch": epoch_length}
        differing = [key for key in wanted if key in found and found[key] != wanted[key] and self._decides(key, found)]
        if differing == ["steps_per_epoch"]:
            length = found["steps_per_epoch"]
            asked = (max_epochs * epoch_length) + max_epochs - 1  # at most: what does not fill an epoch is left out
            steps = -(-max(asked, state["trainer"]["iteration"]) // length) * length
            raise InputError(
                f"{self.path}: was written by a training of {length} steps an epoch, and this max_steps makes it "
                f"{epoch_length}; go on with --steps_per_epoch {length} --max_steps {steps}"
            )
        if differing:
            told = self._difference(differing[0], found, wanted)
            raise InputError(
                f"{self.path}: was written by a training {told}; use the same, another output_dir, or --resume False"
            )
        done = state["trainer"]["iteration"]
        if done > max_epochs * epoch_length:
            raise InputError(
                f"{self.path}: was written after {done} steps, more than the {max_epochs * epoch_length} of this "
                "training; raise max_steps, or use another output_dir or --resume False"
            )
        for name, item in self.save_dict.items():
            content = state[name]
            if isinstance(item, torch.optim.lr_scheduler.LRScheduler):
                # the position in the schedule; its length is this training's
                content = {**item.state_dict(), **{key: content[key] for key in ("last_epoch", "_step_count")}}
            item.load_state_dict(content)
        scaler = _scaler_of(engine)
        if scaler is not None and "scaler" in state:
            scaler.load_state_dict(state["scaler"])
        engine.state.max_epochs = max_epochs
        if state.get("processes", 1) != num_processes():
            logger.warning(
                "%s: was written by %d processes and this training has %d, each with a step's scans of its own: a step "
                "sees another number of scans from here on",
                self.path,
                state.get("processes", 1),
                num_processes(),
            )
        self._draw_anew(engine)
        logger.info("resumed after step %d from %s", engine.state.iteration, self.path)

    def _decides(self, key: str, found: Mapping[str, Any]) -> bool:
        """Whether another value of a setting makes another training: of the file that it starts from, the content."""
        return not (key == "pretrained" and "pretrained_sha256" in found and "pretrained_sha256" in self.settings)

    @staticmethod
    def _difference(key: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
        if key == "cases":
            return "of other scans, or of files of the same names that have been replaced since"
        if key == "pretrained_sha256" and found["pretrained"] == wanted["pretrained"]:
            return f"that started from another file {found['pretrained']}, which has been replaced since"
        key = key.removesuffix("_sha256")
        return f"with {key}={found[key]}, this one has {key}={wanted[key]}"

    def _draw_anew(self, engine: Any) -> None:
        """Seed what is random with a number that neither an earlier part of this training nor another process has."""
        seed = self.seed + engine.state.iteration + 1_000_003 * engine.state.rank
        set_determinism(seed=seed)
        loader = getattr(engine, "data_loader", None)
        # the transforms and the sampler were seeded when they were made
        set_rnd(getattr(loader, "dataset", None), seed)
        generator = getattr(getattr(loader, "sampler", None), "generator", None)
        if generator is not None:
            generator.manual_seed(seed)


class BestWeights:
    """Keep the network of the best validation so far in `folder/best.pt`. Attach it to the evaluator.

    Args:
        network: the network to keep (not its distributed wrapper).
        folder: folder of the file.
        resume: an earlier best is kept where there is a training to go on with, `folder/last.pt`. Without one it is of
            another training, which may have been stopped in its first epoch; False forgets it in any case.
    """

    def __init__(self, network: nn.Module, folder: str | Path, resume: bool = True) -> None:
        self.network, self.path = network, Path(folder) / "best.pt"
        self.best = float("-inf")
        if not (resume and self.path.with_name("last.pt").is_file()):
            self.path.unlink(missing_ok=True)  # several processes may come here at a time
        elif self.path.is_file():
            self.best = _load(self.path)["metric"]

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        metric = float(engine.state.metrics[engine.state.key_metric_name])
        if metric > self.best and engine.state.rank == 0:
            self.best = metric
            _save({"metric": metric, "network": self.network.state_dict()}, self.path)


class ReleaseWeights:
    """At the end of a training, write the network as `path` in the released format, with its provenance beside it.

    Args:
        network: the network (not its distributed wrapper).
        path: the file, for instance `output_dir/model.pt`.
        selection: "best" takes the best validation's network, where there was one, "last" the last one.
        folder: folder in which `BestWeights` keeps `best.pt`.
        settings: what made these weights (data, sizes, counts), for the provenance.
        optimizer: where one is given, the last network with its state is written too, as `pretraining.pt` beside
            `path`, to go on from.

    Raises:
        InputError: unknown selection.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | Path,
        selection: str = "last",
        folder: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        if selection not in ("best", "last"):
            raise InputError(f"ReleaseWeights: selection must be 'best' or 'last', but is {selection!r}")
        self.network, self.path, self.selection = network, Path(path), selection
        self.best = Path(folder) / "best.pt" if folder is not None else None
        self.settings = dict(settings or {})
        # now, because the checkout may change while the training runs
        self.commit = git_commit()
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.seconds, self._since = 0.0, time.monotonic()
        self.optimizer = optimizer
        self.steps_made = 0

    def state_dict(self) -> dict[str, Any]:
        """Training time so far, so that it adds up over restarts; when the training started, and from which commit and
        weights.
        """
        seconds = self.seconds + time.monotonic() - self._since
        start = {key: self.settings[key] for key in OF_THE_START if key in self.settings}
        return {"seconds": seconds, "commit": self.commit, "started": self.started, **start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seconds, self._since = state["seconds"], time.monotonic()
        self.commit, self.started = state.get("commit", self.commit), state.get("started", self.started)
        self.settings.update({key: state[key] for key in OF_THE_START if key in state})

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.COMPLETED, self)

    def _count(self) -> None:
        self.steps_made += 1

    def __call__(self, engine: Any) -> None:
        if engine.state.rank != 0:
            return
        if self.steps_made == 0 and self._written(engine.state.iteration):
            logger.info("the training was finished before; %s stays as it is", self.path)
            return
        record = {**self.settings, **self.provenance(engine)}
        if self.optimizer is not None:
            checkpoint = self.path.with_name("pretraining.pt")
            save_checkpoint(self.network, self.optimizer, checkpoint, {**record, "selection": "last"})
        if self.best is None or not self.best.is_file():
            self.selection = "last"
        if self.selection == "best" and self.best is not None:
            load_weights(self.network, self.best)
        save_weights(self.network, self.path, {**record, "selection": self.selection})
        logger.info("wrote %s (the %s network)", self.path, self.selection)

    def _written(self, steps: int) -> bool:
        """Whether `path` is what this training writes after so many steps, and not an earlier one's."""
        try:
            record = json.loads(provenance_path(self.path).read_text())
        except (OSError, ValueError):
            return False
        return self.path.is_file() and (record.get("started"), record.get("steps")) == (self.started, steps)

    def provenance(self, engine: Any) -> dict[str, Any]:
        """Command, steps, time and machine of this training."""
        seconds = self.state_dict()["seconds"]
        record = training_record(self.commit, engine.state.iteration, seconds, engine.state.device)
        return {**record, "started": self.started}
