"""Weight files: plain state dicts, checked before anything is believed.

A released file is `model.pt`, a state dict that loads with `weights_only=True`, in half precision. Beside it lies
`model.json` with its SHA-256 and its provenance. A file without `model.json` loads too: there is just no hash to check.
A name that ends in `.safetensors` reads or writes that format instead, if the package `safetensors` is installed.
"""

from __future__ import annotations

import json
import pickle
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from custom_components.delivery import file_digest
from custom_components.errors import InputError
from custom_components.files import whole_file

# takes the state dict out of a checkpoint or of a whole saved network; for who trusts the file, on their own machine
EXTRACT = (
    "import sys, torch; c = torch.load(sys.argv[1], 'cpu', weights_only=False); "
    "torch.save(c['state_dict'] if isinstance(c, dict) else c.state_dict(), sys.argv[2])"
)

# settings whose names in the record say more than in the configs
RECORDED_AS = {"spacing": "spacing_mm", "class_names": "classes"}


class WeightsError(InputError):
    """A weight file that cannot be used; the message is one sentence that says which, why and what to do."""


def provenance_path(path: str | Path) -> Path:
    """`model.json` for `model.pt`; for any other, `model.ckpt.json`, so that all fit in one folder."""
    path = Path(path)
    return path.with_suffix(".json") if path.suffix == ".pt" else path.with_name(path.name + ".json")


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def differing_settings(record: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Which settings are not those in the record of a training: name -> the recorded value.

    Args:
        record: what lies beside weights as `model.json`.
        settings: name in the configs -> value; one that the record does not have is taken to be right.
    """
    # as they come back from the file
    wanted = json.loads(json.dumps(dict(settings), default=str))
    recorded = record if isinstance(record, dict) else {}
    found = {name: recorded.get(RECORDED_AS.get(name, name)) for name in wanted}
    return {name: value for name, value in found.items() if value is not None and value != wanted[name]}


def recorded_classes(path: str | Path, class_names: Sequence[str]) -> list[str]:
    """The classes that a network was taught, of its label values 1, 2, ...: those in the record beside its weight file.

    Args:
        path: the weight file.
        class_names: what they are taken to be where there is no such file, or a record that does not name them.

    Raises:
        WeightsError: as `read_record`.
    """
    record = read_record(path)
    found = record.get("classes") if isinstance(record, dict) else None
    return list(found or class_names)


MISSING = "missing"


def weights_digest(path: str | Path | None) -> str | None:
    """The SHA-256 of the weight file that a training starts from, wherever it lies.

    Returns:
        None for no file (None, or "none" on a command line); `MISSING` for one that is not there.
    """
    if path is None or str(path).lower() == "none":
        return None
    return file_digest(path) if Path(path).is_file() else MISSING


def save_weights(network: nn.Module, path: str | Path, provenance: Mapping[str, Any] | None = None) -> Path:
    """Write `network`'s state dict in half precision, and its SHA-256 with `provenance` to `model.json` beside it.

    Both files are written under another name first, so that a reader never meets half a file.
    """
    return write_state(as_stored(network.state_dict(), torch.float16), Path(path), provenance or {})


def save_checkpoint(
    network: nn.Module, optimizer: torch.optim.Optimizer, path: str | Path, provenance: Mapping[str, Any] | None = None
) -> Path:
    """As `save_weights`, with the optimiser's state, so that a training can be gone on from; half the usual size.

    The moments of Adam are stored as bfloat16: they span more powers of ten than half precision has.
    """
    moments = optimizer.state_dict()["state"]
    content = {
        "network": as_stored(network.state_dict(), torch.float16),
        "optimizer": {index: as_stored(entry, torch.bfloat16) for index, entry in moments.items()},
    }
    return write_state(content, Path(path), provenance or {})


def as_stored(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies on the CPU, each with a storage of its own; floating-point ones as `dtype`, counters as they are."""
    return {
        name: value.detach()
        .to("cpu", dtype if value.is_floating_point() else value.dtype)
        .clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


def write_state(state: dict[str, Any], path: Path, provenance: Mapping[str, Any]) -> Path:
    """Write plain tensors in dictionaries, and a record with their SHA-256 and `provenance` beside them.

    A safetensors file has `provenance` in itself too, as JSON in its metadata.

    Raises:
        WeightsError: a value is not finite; then nothing is written.
    """
    wrong = not_finite(state)
    if wrong:
        raise WeightsError(
            f"{path}: not written, because {wrong} has values that are not finite or too large for half precision: the "
            "training diverged; begin it anew with a lower learning_rate"
        )
    # the record is complete before either takes its place, so that the two are replaced at nearly one moment
    with whole_file(provenance_path(path)) as json_partial, whole_file(path) as partial:
        if _is_safetensors(path):
            # not its save_file, which leaves a file that only its owner can read; one entry, because it writes several
            # in an order that differs between processes
            partial.write_bytes(_safetensors(path).save(state, {"provenance": json.dumps(dict(provenance))}))
        else:
            torch.save(state, partial)
        json_partial.write_text(json.dumps({"sha256": file_digest(partial), **provenance}, indent=4) + "\n")
    return path


def not_finite(state: Mapping[Any, Any]) -> str:
    """The name of the first tensor with a value that is not finite, in dictionaries at any depth; empty for none."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            inner = not_finite(value)
            if inner:
                return inner
        elif not value.isfinite().all():
            return str(name)
    return ""


def _safetensors(path: Path) -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise WeightsError(
            f"{path}: needs the package safetensors, which is not installed; pip install safetensors, or use a .pt file"
        ) from error
    return safetensors.torch


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a file, after its hash was checked.

    A checkpoint that wraps a state dict under `state_dict`, `model` or `network` is unwrapped.

    Raises:
        WeightsError: missing file, wrong hash, a file that is no state dict or would have to be unpickled.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """As `read_weights`, with the optimiser's state that `save_checkpoint` wrote; empty in any other file.

    Raises:
        WeightsError: as `read_weights`.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file; train one, download one, or pass another path")
    _check_hash(path)
    state = _load(path)
    optimizer = state.get("optimizer") if isinstance(state, Mapping) else None
    ours = isinstance(optimizer, Mapping) and all(isinstance(index, int) for index in optimizer)
    for key in ("state_dict", "model", "network"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not (isinstance(state, Mapping) and state and all(_is_entry(*item) for item in state.items())):
        raise WeightsError(f"{path}: holds no state dict (a mapping of names to tensors)")
    return dict(state), dict(optimizer) if ours and optimizer is not None else {}


def _is_entry(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def read_record(path: str | Path) -> Any:
    """What lies as `model.json` beside `model.pt`, mostly a dictionary: beside somebody else's checkpoint a .json may
    be anything; None where there is none.

    Raises:
        WeightsError: it is not JSON.
    """
    record = provenance_path(path)
    if not record.is_file():
        return None
    try:
        return json.loads(record.read_text())
    except ValueError as error:
        raise WeightsError(
            f"{record}: is not JSON, so {Path(path).name} cannot be checked; fetch or remove it"
        ) from error


def _check_hash(path: Path) -> None:
    record, content = provenance_path(path), read_record(path)
    if content is None:
        return
    expected = content.get("sha256") if isinstance(content, dict) else None
    found = file_digest(path)
    if expected and expected != found:
        raise WeightsError(
            f"{path}: its SHA-256 is {found[:12]}... but {record.name} says {expected[:12]}...; the file is "
            "damaged or was replaced: download it again, or remove the .json if you replaced it on purpose"
        )


def _load(path: Path) -> Any:
    """What a file holds, read without unpickling."""
    read = _safetensors(path).load_file if _is_safetensors(path) else None
    try:
        return read(path) if read else torch.load(path, map_location="cpu", weights_only=True)
    # a damaged or foreign file can raise anything: UnpicklingError, KeyError, RuntimeError, EOFError, ...
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused is None:
            raise WeightsError(
                f"{path}: is not a readable {'safetensors' if read else 'PyTorch'} file; it may be incomplete, or "
                "something else under that name: fetch it again"
            ) from error
        plain = path.with_name(path.stem + "_plain.pt")
        raise WeightsError(
            f"{path}: holds Python objects ({refused[1]}), and only plain tensors are loaded; if you trust the file, "
            f'take its state dict out with: python -c "{EXTRACT}" {shlex.quote(str(path))} {shlex.quote(str(plain))}'
        ) from error
