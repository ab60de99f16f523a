"""The grid of trainings: backbone x head x number of labelled scans x seed, each run through a bundle's own configs."""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from tqdm import tqdm

from custom_components.command_line import known_settings, require_known, top_level
from custom_components.data import digest_of_cases
from custom_components.delivery import file_digest
from custom_components.errors import InputError
from custom_components.metrics import warn_of_seen

logger = logging.getLogger(__name__)

UNTRAINED = "untrained"
FEW_SCANS = 5
# what a training's `model.json` says that is another in every cell, or does not decide on the scores
OF_ONE_CELL = set("sha256 data scans cases seen_scans crop_ratios num_labelled seed selection".split())
OF_ONE_CELL |= set(
    "pretrained pretrained_sha256 command commit minutes started finished processes machine torch monai".split()
)
# head -> override merged on train.json, and run id
HEADS: dict[str, tuple[list[str], str]] = {
    "linear": ([], "quick_probe"),
    "linear_augmented": (["linear_probe"], "run"),
    "nonlinear": (["nonlinear_probe"], "run"),
    "finetune": ([], "run"),
}

# what differs between the cells -> the option of the scripts that says so
OPTION_OF = {"seed": "seeds", "pretrained": "backbones", "weights": "backbones"}


@dataclass(frozen=True)
class Cell:
    """One training and its scores.

    Args:
        bundle: folder of the segmentation bundle.
        backbone: name of the backbone; `untrained` with the head "finetune" is training from scratch.
        weights: its weight file; None for the untrained one.
        head: of `HEADS`: "linear" is fitted to the frozen backbone's vectors in seconds; "linear_augmented" and
            "nonlinear" are trained on it with augmentation; "finetune" trains everything.
        num_labelled: labelled scans; None for all.
        seed: decides the subset, the first values of the head, and the order of the scans.
        settings: overrides that the backbone needs in training and evaluation, such as its intensities.
        overrides: names of configs that are merged on `train.json` where the head is trained step by step.
    """

    bundle: Path
    backbone: str
    weights: Path | None
    head: str
    num_labelled: int | None
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    overrides: tuple[str, ...] = ()

    @property
    def labels(self) -> str:
        return "all" if self.num_labelled is None else str(self.num_labelled)

    def folder(self, output_dir: Path) -> Path:
        """Where the cell's training, scores and log are."""
        run = f"{self.labels}_labelled_seed_{self.seed}"
        return output_dir / "runs" / self.bundle.name / self.backbone / self.head / run

    def made_of(self, settings: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
        """What decides on the scores, beside what names the folder; arguments as in `commands`."""
        return {
            "weights": None if self.weights is None else file_digest(self.weights),
            "settings": {**settings, **self.settings},
            "training": {key: value for key, value in training.items() if key != "cache_dir"},
            "overrides": list(self.overrides),
        }

    def commands(self, output_dir: Path, settings: Mapping[str, Any], training: Mapping[str, Any]) -> list[list[str]]:
        """The two `monai.bundle run` commands, training and evaluation.

        Args:
            settings: overrides for both, such as dataset_dir.
            training: overrides for the training alone, such as max_steps.
        """
        folder = self.folder(output_dir)
        scratch = self.head == "finetune" and self.weights is None
        overrides, run_id = (["from_scratch"], "run") if scratch else HEADS[self.head]
        settings = {**settings, **self.settings}
        train = {
            "pretrained": self.weights if self.weights is not None else "none",
            "num_labelled": self.num_labelled,
            "seed": self.seed,
            **training,
        }
        if self.num_labelled is not None:  # the last network is kept: a validation would only take time
            train["validate#dataset#data"] = []
        score: dict[str, Any] = {"weights": folder / "model.pt"}
        if self.head == "nonlinear":
            score["head"] = "nonlinear"
        return [
            bundle_command(self.bundle, ["train", *overrides, *self.overrides], folder, {**settings, **train}, run_id),
            bundle_command(self.bundle, ["evaluate"], folder, {**settings, **score}),
        ]


def as_list(value: Any) -> list[Any]:
    """The values of an option of the command line, which gives one, or several as a list or tuple."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def bundle_command(
    bundle: Path, configs: Sequence[str], folder: Path, settings: Mapping[str, Any], run_id: str = "run"
) -> list[str]:
    """The `monai.bundle run` command of a bundle's configs, merged in this order, with its output in `folder`.

    Settings that these configs do not have, such as those of the training where it is the evaluation's, are left out.
    """
    files = [str(bundle / "configs" / f"{name}.json") for name in configs]
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    command += ["--bundle_root", str(bundle), "--output_dir", str(folder)]
    known = known_settings(files)
    for key, value in settings.items():
        if top_level(key) in known:
            command += [f"--{key}", str(value)]
    return command


def run_logged(commands: Sequence[Sequence[str]], folder: Path, environment: Mapping[str, str] | None = None) -> bool:
    """Run commands one after the other, their output in `folder/log.txt`; False where one failed, and then no other."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as log:
        return all(
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode == 0
            for command in commands
        )


def require_same(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Keep what a training is made of in `folder/made_of.json`, and refuse a folder that holds another one.

    A training that failed before its first checkpoint holds nothing, and may be tried again with other settings.

    Raises:
        InputError: the folder's training has other settings or weights.
    """
    # as it comes back from the file
    wanted = json.loads(json.dumps(dict(made_of), default=str))
    path = folder / "made_of.json"
    if path.is_file() and any((folder / name).is_file() for name in ("checkpoints/last.pt", "model.pt", "metrics.csv")):
        found = json.loads(path.read_text())
        # nothing at all is the same as an empty list
        differing = [key for key in {**wanted, **found} if (found.get(key) or None) != (wanted.get(key) or None)]
        if differing:
            key = differing[0]
            raise InputError(
                f"{folder}: was made with {key}={found.get(key)}, this one has {key}={wanted.get(key)}; "
                "use the same, another output_dir, or remove that folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=4) + "\n")


def require_configs(bundle: Path, names: Iterable[str]) -> None:
    """Raises an `InputError` that names the first config that the bundle does not have."""
    for name in names:
        if not (bundle / "configs" / f"{name}.json").is_file():
            raise InputError(f"{bundle / 'configs' / name}.json: no such config; name one of this bundle's")


def require_mapping(option: str, value: Any, example: str) -> None:
    """Raises an `InputError` where an option that gives something a name is given, and does not."""
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f'{option}: names were expected, as in "{example}", but {value} came')


def check_heads(heads: Iterable[str]) -> None:
    """Raises an `InputError` that names the heads that are not among `HEADS`."""
    unknown = sorted(set(heads) - set(HEADS))
    if unknown:
        raise InputError(f"heads: must be of {', '.join(HEADS)} but {', '.join(unknown)} came")


def check_settings(bundle: Path, names: Iterable[str], others: Sequence[Path] = ()) -> None:
    """Raises an `InputError` that names the overrides that neither the bundle's configs nor `others` have, or that are
    another one in every cell.
    """
    names = list(names)
    for name, option in OPTION_OF.items():
        if name in names:
            raise InputError(f"--{name}: is another one in every training of a grid; give --{option}")
    require_known(names, [*others, *(bundle / "configs" / f"{name}.json" for name in ("train", "evaluate"))])


def training_settings(
    heads: Sequence[str], steps: Mapping[str, int] | None, cache_dir: Path
) -> dict[str, dict[str, Any]]:
    """Head -> overrides for its training: where scans are kept, and the number of steps where one is given.

    Raises:
        InputError: steps of a head that is not among `heads`, or not trained step by step ("linear").
    """
    require_mapping("steps", steps, "{'finetune': 300}")
    trained = [head for head in heads if head != "linear"]
    others = sorted(set(steps or {}) - set(trained))
    if others:
        raise InputError(
            f"steps: must be of the heads that are trained here ({', '.join(trained) or 'none'}) "
            f"but {', '.join(others)} came"
        )
    counts = {head: {"max_steps": count} for head, count in (steps or {}).items()}
    return {head: {"cache_dir": cache_dir, **counts.get(head, {})} for head in heads}


def scored_scans(bundle: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scans that the cells of a bundle are scored on.

    Args:
        settings: overrides for all evaluations, as in `run_cells`.
    """
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "evaluate.json")
    known = known_settings([bundle / "configs" / "evaluate.json"])
    parser.update({"bundle_root": str(bundle), **{k: v for k, v in settings.items() if top_level(k) in known}})
    return parser.get_parsed_content("dataset#data")


def warn_of_seen_by_backbones(cells: Sequence[Cell], held_out: Sequence[Mapping[str, Any]]) -> None:
    """Log a warning for every backbone that was pre-trained on scans that the cells are scored on.

    Args:
        held_out: those scans, as `scored_scans` gives them.
    """
    for weights in dict.fromkeys(cell.weights for cell in cells if cell.weights is not None):
        warn_of_seen(held_out, weights)


def as_counts(values: Any) -> list[int | None]:
    """Numbers of labelled scans of an option of the command line: None for "all".

    Raises:
        InputError: neither a whole number of at least 1 nor "all".
    """
    counts: list[int | None] = []
    for value in as_list(values):
        if value in ("all", None):
            counts.append(None)
        elif str(value).isdecimal() and int(value) >= 1:
            counts.append(int(value))
        else:
            raise InputError(f"num_labelled: must be numbers of scans, or all, but {value} came")
    return counts


def make_cells(
    bundle: Path,
    backbones: Mapping[str, str | None],
    num_labelled: Iterable[int | None],
    heads: Iterable[str],
    seeds: Iterable[int],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    overrides: Sequence[str] = (),
) -> list[Cell]:
    """All cells, the cheapest first: few labels before many, so that a grid that is stopped is even.

    Args:
        bundle: folder of the segmentation bundle.
        backbones: name -> weight file; None for the untrained one.
        num_labelled, heads, seeds: as in `Cell`.
        settings: name of a backbone -> overrides that it needs, as in `Cell`.
        overrides: names of configs of the bundle, such as "strong_augmentation", for the heads that are trained step by
            step.

    Raises:
        InputError: an unknown head or config, a weight file that is not there, the same one under two names, settings
            of a backbone that is not among them.
    """
    heads = list(heads)
    check_heads(heads)
    files = {name: None if weights is None else Path(weights) for name, weights in backbones.items()}
    for name, file in files.items():
        if file is not None and not file.is_file():
            raise InputError(f"{file}: no such weight file, for the backbone {name}; train or download it")
    named: dict[tuple[str, str], str] = {}
    for name, file in files.items():
        # the same weights with other settings may be another backbone
        what = ("" if file is None else file_digest(file), json.dumps((settings or {}).get(name, {}), default=str))
        if (other := named.setdefault(what, name)) != name:
            raise InputError(f"backbones: {other} and {name} are the same weights; name them once")
    strange = sorted(set(settings or {}) - set(files))
    if strange:
        raise InputError(f"backbone_settings: must be of {', '.join(files)} but {', '.join(strange)} came")
    require_configs(bundle, overrides)
    counts = sorted(set(num_labelled), key=lambda count: (count is None, count))
    return [
        Cell(
            bundle,
            name,
            file,
            head,
            count,
            seed,
            settings=(settings or {}).get(name, {}),
            overrides=() if head == "linear" else tuple(overrides),
        )
        for seed, count, head, (name, file) in itertools.product(seeds, counts, heads, files.items())
    ]


def run_cells(
    cells: Sequence[Cell],
    output_dir: Path,
    settings: Mapping[str, Any],
    training: Mapping[str, Mapping[str, Any]] | None = None,
    jobs: int = 1,
    held_out: Sequence[Mapping[str, Any]] = (),
) -> list[Cell]:
    """Train and score every cell that has no scores yet; a training that was stopped goes on.

    Args:
        settings: overrides for training and evaluation.
        training: head -> overrides for its training.
        jobs: cells at a time; the CPU's threads are shared out among them.
        held_out: the scans that they are scored on, as `scored_scans` gives them.

    Returns:
        The cells that failed; each has its output in `log.txt`.

    Raises:
        InputError: `jobs` below 1; a cell's folder holds a training with other settings or weights, or scores of other
            scans, as where scans were added; nothing is run then.
    """
    if 0 < len(held_out) < FEW_SCANS:
        logger.warning(
            "%d held-out scans are few to tell backbones apart, and an interval over them says little; add labelled "
            "scans, or hold out more of them (scripts.dataset_json)",
            len(held_out),
        )
    if jobs < 1:
        raise InputError(f"jobs: must be at least 1 but is {jobs}")
    for cell in cells:
        made_of = cell.made_of(settings, (training or {}).get(cell.head, {}))
        require_same(cell.folder(output_dir), {**made_of, "held_out_scans": digest_of_cases(held_out)})
    threads = max((os.cpu_count() or 1) // jobs, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if jobs > 1 else dict(os.environ)
    open_cells = [cell for cell in cells if not (cell.folder(output_dir) / "metrics.csv").is_file()]

    def run(cell: Cell) -> bool:
        commands = cell.commands(output_dir, settings, (training or {}).get(cell.head, {}))
        return run_logged(commands, cell.folder(output_dir), environment)

    with ThreadPoolExecutor(jobs) as pool:
        bar = tqdm(pool.map(run, open_cells), total=len(open_cells), unit="training", disable=not open_cells)
        return [cell for cell, succeeded in zip(open_cells, bar) if not succeeded]


def differing_recipes(cells: Iterable[Cell], output_dir: Path) -> list[str]:
    """Sentences about finished cells of one head that were trained by other recipes, as after a default has changed.

    What a backbone needs (`Cell.settings`) and the start of an untrained network's head may differ.
    """
    first: dict[tuple[str, str], tuple[Path, Any]] = {}
    sentences = []
    for cell in cells:
        folder = cell.folder(output_dir)
        if not (folder / "metrics.csv").is_file() or not (folder / "model.json").is_file():
            continue
        may_differ = OF_ONE_CELL | set(cell.settings) | ({"head_start"} if cell.weights is None else set())
        for key, value in json.loads((folder / "model.json").read_text()).items():
            if key in may_differ:
                continue
            other, wanted = first.setdefault((cell.head, key), (folder, value))
            if value != wanted:
                sentences.append(
                    f"{folder}: was trained with {key}={value}, {other} with {key}={wanted}; "
                    "remove the older of the two to have it trained again"
                )
    return sentences
