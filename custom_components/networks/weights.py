"""From weight files into networks: a whole network, its backbone alone, or a predecessor's checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from custom_components.delivery import bundle_folder, file_digest, is_bundle_name

from .fpn import FPN3d
from .segmentation import SegmentationNetwork
from .weight_files import (
    WeightsError,
    as_stored,
    differing_settings,
    read_checkpoint,
    read_record,
    read_weights,
    write_state,
)

logger = logging.getLogger(__name__)

# what wrappers (DataParallel, Lightning, torch.compile) put before the names of a backbone
WRAPPERS = {"backbone", "model", "module", "network", "_orig_mod"}


def adapt_in_channels(weight: Tensor, in_channels: int) -> Tensor:
    """Fit the first convolution `(C, K, h, w, d)` to another number of input channels.

    The kernels are repeated over the new channels and rescaled by K / in_channels, so that the same image in every
    channel gives the same response as before.
    """
    repeats = -(-in_channels // weight.shape[1])
    repeated = weight.float().repeat(1, repeats, 1, 1, 1)[:, :in_channels]
    return repeated * (weight.shape[1] / in_channels)


def _backbone_prefix(state: Mapping[str, Tensor]) -> str:
    """What stands before the backbone's names in a state dict: nothing, `backbone.`, `module.backbone.`, ...

    Of several backbones the one behind nothing but wrappers' names is meant: `backbone.`, not `momentum_backbone.`.

    Raises:
        WeightsError: no backbone, or several that could be meant.
    """
    last = "first_conv.weight"
    prefixes = [key.removesuffix(last) for key in state if key == last or key.endswith("." + last)]
    if not prefixes:
        raise WeightsError(f"the state dict has no '{last}': it is not that of an FPN3d backbone")
    plain = [prefix for prefix in prefixes if set(prefix.split(".")[:-1]) <= WRAPPERS]
    chosen = plain or prefixes
    if len(chosen) > 1:
        raise WeightsError(
            f"the state dict has several backbones ({', '.join(map(repr, chosen))}); keep only one in it"
        )
    return chosen[0]


def backbone_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's part of a state dict, under the names that `FPN3d` has; raises as `_backbone_prefix`."""
    prefix = _backbone_prefix(state)
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def infer_architecture(state: Mapping[str, Tensor]) -> dict[str, int]:
    """`in_channels`, `base_channels` and `num_scales` of an `FPN3d` state dict, read from its shapes.

    Raises:
        WeightsError: where it is not a state dict of `FPN3d`.
    """
    state = backbone_state(state)
    shape = state["first_conv.weight"].shape
    if len(shape) != 5:
        raise WeightsError(f"'first_conv.weight' has shape {tuple(shape)}: it is not that of an FPN3d, a 3D network")
    downs = {key.split(".")[1] for key in state if key.startswith("down_blocks.")}
    architecture = {"in_channels": shape[1], "base_channels": shape[0], "num_scales": len(downs) + 1}
    # before anybody builds a network of that size: channels double with every scale
    bottom = state.get("bottom_block.layers.0.layers.0.weight")
    if bottom is None or bottom.shape != (shape[0] * 2 ** len(downs),):
        raise WeightsError(
            f"the state dict has no bottom block for {shape[0]} channels x {len(downs) + 1} scales: it is not that of "
            "a whole FPN3d backbone"
        )
    return architecture


def _backbone_of(state: Mapping[str, Tensor], path: str | Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """`backbone_state` and `infer_architecture`, with the file in the message of what they raise."""
    try:
        return backbone_state(state), infer_architecture(state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _require_whole(found: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise unless `found` has every entry of the backbone `own` in its shape, and no block that `own` has not."""
    missing = sorted(key for key, value in own.items() if key not in found or found[key].shape != value.shape)
    if missing:
        raise WeightsError(
            f"{path}: {len(missing)} of the backbone's {len(own)} entries are missing or of another shape "
            f"(first: {missing[0]}); it is not a whole FPN3d backbone"
        )
    # without this, a variant with more layers would load, and silently compute something else
    blocks = {key.split(".")[0] for key in own}
    surplus = sorted(key for key in found if key not in own and key.split(".")[0] in blocks)
    if surplus:
        raise WeightsError(
            f"{path}: the backbone in it has {len(surplus)} entries more than FPN3d (first: {surplus[0]}); "
            "it is a deeper variant, which this package does not have"
        )


def _fit(state: Mapping[str, Tensor], backbone: FPN3d, path: str | Path) -> dict[str, Tensor]:
    """The backbone's part of `state`, its first convolution adapted to the channels of `backbone`."""
    part, found = _backbone_of(state, path)
    wanted = {"base_channels": backbone.base_channels, "num_scales": backbone.num_scales}
    if any(found[key] != value for key, value in wanted.items()):
        raise WeightsError(
            f"{path}: the backbone in it has base_channels={found['base_channels']}, num_scales={found['num_scales']}, "
            f"but the network has base_channels={wanted['base_channels']}, num_scales={wanted['num_scales']}; "
            "set both to the file's"
        )
    if found["in_channels"] != backbone.in_channels:
        part["first_conv.weight"] = adapt_in_channels(part["first_conv.weight"], backbone.in_channels)
        logger.info("first_conv: %d input channels repeated to %d", found["in_channels"], backbone.in_channels)
    return part


def _skipped(state: Mapping[str, Tensor], own: Iterable[str]) -> list[str]:
    """The entries of a state dict that are not its backbone's, whose names are `own`: heads, projectors, ..."""
    prefix = _backbone_prefix(state)
    return sorted(set(state) - {prefix + key for key in own})


def load_pretrained_backbone(
    network: nn.Module,
    path: str | Path | None,
    settings: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
) -> nn.Module:
    """Load the backbone of a weight file into `network` (an `FPN3d`, or a network with a `.backbone`).

    The heads keep their values. The number of input channels may differ (see `adapt_in_channels`). Logs how many keys
    matched and which were skipped.

    Args:
        path: weight file; None, or "none" on a command line, leaves the network untrained.
        settings: how images are prepared here, such as `spacing`; a warning is logged where the backbone was trained
            with others.
        checkpoint: of a training that was stopped, if there is one: it goes on from there, so that weights that have
            been moved since are not missed.

    Raises:
        WeightsError: as `read_weights`, or where the backbone does not load whole.
    """
    if path is None or str(path).lower() == "none":
        logger.info("backbone: untrained (no pretrained weights asked for)")
        return network
    if checkpoint is not None and Path(checkpoint).is_file() and not Path(path).is_file():
        logger.warning("%s: no such weight file any more; the training goes on from %s", path, checkpoint)
        return network
    skipped = _load_backbone(network, read_weights(path), path)
    logger.info("beside the backbone: %s", _listed("skipped", skipped))
    here = settings or {}
    for name, value in differing_settings(read_record(path), here).items():
        logger.warning(
            "backbone: was pre-trained with %s %s, here it is %s; it may be worth less", name, value, here[name]
        )
    return network


def _load_backbone(network: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> list[str]:
    """Load the backbone in a state dict; returns the names of the other entries."""
    backbone = network if isinstance(network, FPN3d) else network.backbone
    matched = _fit(state, backbone, path)  # type: ignore[arg-type]
    own = backbone.state_dict()  # type: ignore[union-attr]
    _require_whole(matched, own, path)
    backbone.load_state_dict({key: matched[key] for key in own})  # type: ignore[union-attr]
    logger.info("backbone: all %d entries loaded from %s", len(own), path)
    return _skipped(state, own)


def _listed(what: str, keys: Sequence[str]) -> str:
    """How many entries, and the modules that they are of: "3 skipped (head, projector)"."""
    modules = sorted({key.split(".")[0] for key in keys})
    return f"{len(keys)} {what}" + (f" ({', '.join(modules)})" if modules else "")


def continue_pretraining(
    network: nn.Module,
    path: str | Path | None,
    optimizer: torch.optim.Optimizer | None = None,
    checkpoint: str | Path | None = None,
) -> nn.Module:
    """Start a pre-training where another one ended: backbone, heads and, if the file has it, the optimiser's state.

    The backbone must load whole. Heads load entry by entry; one that is absent or of another shape (another number of
    scales, raw instead of balanced features) keeps its first value. The optimiser's state loads only where every entry
    did. Logs how many matched and which were skipped. Rate and schedule are those of the new training.

    Args:
        network: `DenseSSLNetwork`.
        path: a pre-training's `pretraining.pt` or `model.pt`, or any file with its backbone; None, or "none" on a
            command line, starts anew.
        optimizer: the optimiser of the network's parameters, after the network was moved to its device.
        checkpoint: as in `load_pretrained_backbone`.

    Raises:
        WeightsError: as `load_pretrained_backbone`.
    """
    if path is None or not Path(path).is_file():
        return load_pretrained_backbone(network, path, checkpoint=checkpoint)
    state, moments = read_checkpoint(path)
    others = _load_backbone(network, state, path)
    own = network.state_dict()
    heads = {key for key in own if not key.startswith("backbone.")}
    matched = {key: state[key] for key in heads if key in state and state[key].shape == own[key].shape}
    network.load_state_dict(matched, strict=False)
    kept = sorted(heads - set(matched))
    skipped = [key for key in others if key not in matched]
    told = [f"{len(matched)} of {len(heads)} entries loaded"]
    told += [_listed("new", kept)] if kept else []
    told += [_listed("skipped", skipped)] if skipped else []
    logger.info("heads: %s", "; ".join(told))
    if optimizer is None:
        return network
    if not moments:
        logger.info("optimiser: starts anew, because %s has no state of one", path)
        return network
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fits = sorted(moments) == list(range(len(parameters))) and all(
        value.ndim == 0 or value.shape == parameters[index].shape
        for index, entry in moments.items()
        for value in entry.values()
    )
    if fits and not kept:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        logger.info("optimiser: state of %d parameters loaded", len(parameters))
    else:
        logger.info("optimiser: starts anew, because its state in the file is for other parameters")
    return network


def load_weights(
    network: nn.Module, path: str | Path, backbone_only: bool = False, settings: Mapping[str, Any] | None = None
) -> nn.Module:
    """Load a whole network (backbone and heads) from a weight file.

    A `SegmentationNetwork` with `adapt_classes` takes the number of classes from the file.

    Args:
        network: is changed in place.
        path: the weight file.
        backbone_only: the network is used for the features of its backbone alone, so that the file need not have more.
        settings: what the record beside the file must say, where it says something: how images are prepared
            (`spacing`, `intensity_range`, ...) and what the network was taught (`class_names`), under the configs'
            names. Other values would give wrong labels without a word.

    Raises:
        WeightsError: as `read_weights`; where the network was trained with other settings; or where any key is missing,
            left over or of another shape.
    """
    here = settings or {}
    for name, value in differing_settings(read_record(path), here).items():
        raise WeightsError(
            f"{path}: this network was trained with {name} {value}, but here it is {here[name]}; "
            f'give --{name} "{value}"'
        )
    if backbone_only:
        return load_pretrained_backbone(network, path)
    state = read_weights(path)
    if isinstance(network, SegmentationNetwork) and network.adapt_classes:
        network.take_num_classes(state)
    own = network.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    surplus = [key for key in state if key not in own]
    if wrong or surplus:
        if _is_backbone_alone(state):
            raise WeightsError(
                f"{path}: a network with its heads was expected but the file holds a backbone alone; start a training "
                "from it with --pretrained, or write its features with inference.json of a pre-training bundle and "
                "--balanced False"
            )
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


def _is_backbone_alone(state: Mapping[str, Tensor]) -> bool:
    with torch.device("meta"):
        blocks = {key.split(".")[0] for key in FPN3d(1, 1, 2).state_dict()}
    try:
        return (
            _backbone_prefix(state) in ("", "backbone.")
            and {key.removeprefix("backbone.").split(".")[0] for key in state} <= blocks
        )
    except WeightsError:
        return False


def load_backbone(path: str | Path, in_channels: int | None = None) -> FPN3d:
    """A pretrained `FPN3d` from a weight file or a released bundle, its size read from the file, in evaluation mode.

    Args:
        path: a weight file; a bundle folder (its `models/model.pt` is taken); or, as a string, the name of a bundle,
            such as "ct_dense_ssl" or "ct_dense_ssl_v0.1.0": that of this checkout, else the one in the cache, else it
            is downloaded (see `custom_components.delivery.bundle_folder`).
        in_channels: channels of your images; None takes the file's.

    Raises:
        WeightsError: as `read_weights`, or where there is no whole backbone in the file.
        InputError: a bundle's name, and it cannot be fetched.
    """
    if isinstance(path, str) and is_bundle_name(path) and not Path(path).exists():
        path = bundle_folder(path)
    path = Path(path)
    if path.is_dir():
        path = path / "models" / "model.pt"
    _, architecture = _backbone_of(read_weights(path), path)
    if in_channels is not None:
        architecture["in_channels"] = in_channels
    backbone = FPN3d(**architecture)
    load_pretrained_backbone(backbone, path)
    return backbone.eval()


def import_backbone(source: str | Path, output: str | Path, half: bool = False) -> dict[str, Any]:
    """Write the backbone of a predecessor's checkpoint as a weight file of the bundles.

    Args:
        source: Lightning checkpoint or plain state dict of vox2vec or of the paper's reference implementation, `.ckpt`,
            `.pt` or `.safetensors`; the backbone's names bare or behind `backbone.`, `model.backbone.`, `module.`, ...
        output: file to write, `.pt` or `.safetensors`; the returned record comes to lie beside it as `.json`.
        half: store half precision: half the size, features equal to about three digits. Otherwise float32, and features
            equal to the original's to rounding.

    Returns:
        The record: SHA-256 and name of both files, the architecture, the number of entries, the names of skipped ones.

    Raises:
        WeightsError: as `read_weights`; a backbone that is not whole or not `FPN3d`'s; a value that is not finite; an
            output of another kind, or equal to the source.
    """
    source, output = Path(source), Path(output)
    if output.suffix not in (".pt", ".safetensors") or output.is_dir():
        raise WeightsError(f"{output}: must be a file that ends in .pt or .safetensors")
    if output.resolve() == source.resolve():
        raise WeightsError(f"{output}: is the file to import; give the output another name")
    state = read_weights(source)
    found, architecture = _backbone_of(state, source)
    # names and shapes are all that is needed of it
    with torch.device("meta"):
        own = FPN3d(**architecture).state_dict()
    _require_whole(found, own, source)
    stored = as_stored({key: found[key] for key in own}, torch.float16 if half else torch.float32)
    for key, value in stored.items():
        if not value.isfinite().all():
            too_large = found[key].isfinite().all()
            raise WeightsError(
                f"{source}: {key} has values that are "
                + (f"too large for {value.dtype}; import without half" if too_large else "not finite; it is of no use")
            )
    record = {
        "imported_from": source.name,
        "source_sha256": file_digest(source),
        **architecture,
        "precision": "float16" if half else "float32",
        "entries": len(stored),
        "skipped": _skipped(state, own),
    }
    write_state(stored, output, record)
    return {"sha256": file_digest(output), **record}
