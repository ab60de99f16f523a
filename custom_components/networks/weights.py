"""Reading and writing released weights: plain state dicts, checked before anything is believed.

A released file is `model.pt`, a state dict that loads with `weights_only=True`, in half precision. Beside it lies
`model.json` with its SHA-256 and its provenance. A file without `model.json` loads too: there is just no hash to check.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from custom_components.errors import InputError

from .fpn import FPN3d

logger = logging.getLogger(__name__)


class WeightsError(InputError):
    """A weight file that cannot be used; the message is one sentence that says which, why and what to do."""


def provenance_path(path: str | Path) -> Path:
    """`model.json` for `model.pt`."""
    return Path(path).with_suffix(".json")


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def save_weights(network: nn.Module, path: str | Path, provenance: Mapping[str, Any] | None = None) -> Path:
    """Write `network`'s state dict in half precision, and its SHA-256 with `provenance` to `model.json` beside it.

    Both files are written under another name first, so that a reader never meets half a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in network.state_dict().items()
    }
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    record = {"sha256": sha256_of(partial), **(provenance or {})}
    json_path = provenance_path(path)
    json_partial = json_path.with_name(json_path.name + ".partial")
    json_partial.write_text(json.dumps(record, indent=4) + "\n")
    partial.replace(path)
    json_partial.replace(json_path)
    return path


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a file, after its hash was checked.

    A checkpoint that wraps a state dict under `state_dict`, `model` or `network` is unwrapped.

    Raises:
        WeightsError: missing file, wrong hash, a file that is no state dict or would have to be unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file; train one, download one, or pass another path")
    record = provenance_path(path)
    if record.is_file():
        expected = json.loads(record.read_text()).get("sha256")
        found = sha256_of(path)
        if expected and expected != found:
            raise WeightsError(
                f"{path}: its SHA-256 is {found[:12]}... but {record.name} says {expected[:12]}...; the file is "
                "damaged or was replaced: download it again, or remove the .json if you replaced it on purpose"
            )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds Python objects or is damaged, and only plain tensors are loaded; "
            "save the state dict alone with torch.save(network.state_dict(), ...)"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise WeightsError(f"{path}: is not a readable PyTorch file; it may be incomplete, fetch it again") from error
    for key in ("state_dict", "model", "network"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise WeightsError(f"{path}: holds no state dict (a mapping of names to tensors)")
    return dict(state)


def adapt_in_channels(weight: Tensor, in_channels: int) -> Tensor:
    """Fit the first convolution `(C, K, h, w, d)` to another number of input channels.

    The kernels are repeated over the new channels and rescaled by K / in_channels, so that the same image in every
    channel gives the same response as before.
    """
    repeats = -(-in_channels // weight.shape[1])
    repeated = weight.float().repeat(1, repeats, 1, 1, 1)[:, :in_channels]
    return repeated * (weight.shape[1] / in_channels)


def backbone_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's part of a state dict: keys behind `backbone.` where there are any, else all."""
    marked = {key.split("backbone.", 1)[1]: value for key, value in state.items() if "backbone." in key}
    return marked or dict(state)


def infer_architecture(state: Mapping[str, Tensor]) -> dict[str, int]:
    """`in_channels`, `base_channels` and `num_scales` of an `FPN3d` state dict, read from its shapes.

    Raises:
        WeightsError: where it is not a state dict of `FPN3d`.
    """
    state = backbone_state(state)
    if "first_conv.weight" not in state:
        raise WeightsError("the state dict has no 'first_conv.weight': it is not that of an FPN3d backbone")
    base_channels, in_channels = state["first_conv.weight"].shape[:2]
    downs = {key.split(".")[1] for key in state if key.startswith("down_blocks.")}
    return {"in_channels": in_channels, "base_channels": base_channels, "num_scales": len(downs) + 1}


def _fit(state: dict[str, Tensor], backbone: FPN3d, path: str | Path) -> dict[str, Tensor]:
    found = infer_architecture(state)
    wanted = {"base_channels": backbone.base_channels, "num_scales": backbone.num_scales}
    if any(found[key] != value for key, value in wanted.items()):
        raise WeightsError(
            f"{path}: the backbone in it has base_channels={found['base_channels']}, num_scales={found['num_scales']}, "
            f"but the network has base_channels={wanted['base_channels']}, num_scales={wanted['num_scales']}; "
            "set both to the file's"
        )
    if found["in_channels"] != backbone.in_channels:
        state["first_conv.weight"] = adapt_in_channels(state["first_conv.weight"], backbone.in_channels)
        logger.info("first_conv: %d input channels repeated to %d", found["in_channels"], backbone.in_channels)
    return state


def load_pretrained_backbone(network: nn.Module, path: str | Path | None) -> nn.Module:
    """Load the backbone of a weight file into `network` (an `FPN3d`, or a network with a `.backbone`).

    The heads keep their values. The number of input channels may differ (see `adapt_in_channels`). Logs how many keys
    matched and which were skipped.

    Args:
        path: weight file; None, or "none" on a command line, leaves the network untrained.

    Raises:
        WeightsError: as `read_weights`, or where the backbone does not load whole.
    """
    if path is None or str(path).lower() == "none":
        logger.info("backbone: untrained (no pretrained weights asked for)")
        return network
    state = read_weights(path)
    backbone = network if isinstance(network, FPN3d) else network.backbone
    matched = _fit(backbone_state(state), backbone, path)  # type: ignore[arg-type]
    own = backbone.state_dict()  # type: ignore[union-attr]
    missing = sorted(key for key, value in own.items() if key not in matched or matched[key].shape != value.shape)
    if missing:
        raise WeightsError(
            f"{path}: {len(missing)} of the backbone's {len(own)} entries are missing or of another shape "
            f"(first: {missing[0]}); it is not a whole FPN3d backbone"
        )
    skipped = sorted(set(state) - {key for key in state if key.split("backbone.", 1)[-1] in own})
    backbone.load_state_dict({key: matched[key] for key in own})  # type: ignore[union-attr]
    logger.info(
        "backbone: %d of %d entries loaded from %s; %d skipped%s",
        len(own),
        len(own),
        path,
        len(skipped),
        f" ({', '.join(sorted({key.split('.')[0] for key in skipped}))})" if skipped else "",
    )
    return network


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load a whole network (backbone and heads) from a weight file.

    Raises:
        WeightsError: as `read_weights`, or where any key is missing, left over or of another shape.
    """
    state = read_weights(path)
    own = network.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    surplus = [key for key in state if key not in own]
    if wrong or surplus:
        key = (wrong or surplus)[0]
        has = tuple(state[key].shape) if key in state else "nothing"
        wants = tuple(own[key].shape) if key in own else "nothing"
        raise WeightsError(
            f"{path}: does not fit this network ({len(wrong)} entries missing or of another shape, {len(surplus)} left "
            f"over; first: {key}, file has {has}, network wants {wants}); check base_channels, num_scales and head"
        )
    network.load_state_dict(state)
    logger.info("network: all %d entries loaded from %s", len(own), path)
    return network


def load_backbone(path: str | Path, in_channels: int | None = None) -> FPN3d:
    """A pretrained `FPN3d` from a weight file, its size read from the file, in evaluation mode.

    Args:
        path: a weight file, or a bundle folder (its `models/model.pt` is taken).
        in_channels: channels of your images; None takes the file's.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "models" / "model.pt"
    architecture = infer_architecture(read_weights(path))
    if in_channels is not None:
        architecture["in_channels"] = in_channels
    backbone = FPN3d(**architecture)
    load_pretrained_backbone(backbone, path)
    return backbone.eval()
