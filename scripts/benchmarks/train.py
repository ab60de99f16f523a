"""A step of pre-training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from custom_components.networks import DenseSSLNetwork

from .loss import dense_info_nce
from .settings import Row, Settings, bundle_config, require
from .timing import peak_memory, time_beside


def overrides(settings: Settings) -> dict[str, Any]:
    """The bundle's settings on a GPU, those for two CPU cores else, small ones for a quick look."""
    if settings.quick:
        return {"base_channels": 8, "crop_size": [32, 32, 16], "scans_per_step": 2, "pairs_per_scan": 1}
    if settings.device == "cuda":
        return {}
    return {"crop_size": [40, 40, 32], "scans_per_step": 3, "pairs_per_scan": 1}


def config_of(settings: Settings, **options: Any) -> Any:
    """The training config of `ct_dense_ssl`."""
    return bundle_config(
        "ct_dense_ssl", "train", device=torch.device(settings.device), **overrides(settings), **options
    )


def batch_of(settings: Settings) -> tuple[Tensor, dict[str, Tensor]]:
    """Random views `(2N, 1, H, W, D)`, all first before all second, and what the loss wants of them."""
    config = config_of(settings)
    crop, scans, pairs = (config.get_parsed_content(key) for key in ("crop_size", "scans_per_step", "pairs_per_scan"))
    generator = torch.Generator().manual_seed(0)
    views = torch.rand(2 * scans * pairs, 1, *crop, generator=generator)
    positions = [torch.randint(0, side, (len(views), 1024), generator=generator) for side in crop]
    target = {
        "original": views,
        "voxels": torch.stack(positions, -1),
        "scan": torch.arange(scans).repeat_interleave(pairs),
    }
    return views.to(settings.device), {key: value.to(settings.device) for key, value in target.items()}


def our_step(settings: Settings, **options: Any) -> Callable[[], Tensor]:
    """The bundle's network, loss, precision and optimiser."""
    torch.manual_seed(0)
    config = config_of(settings, **options)
    network, loss_function, optimizer = (config.get_parsed_content(key) for key in ("network", "loss", "optimizer"))
    precision = torch.autocast(
        settings.device, config.get_parsed_content("amp_dtype"), config.get_parsed_content("amp")
    )
    views, target = batch_of(settings)

    def step() -> Tensor:
        optimizer.zero_grad()
        with precision:
            loss = loss_function(network(views, target["voxels"]), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def reference_loss(prediction: tuple[Tensor, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """The hybrid loss with a dense InfoNCE, one scan after the other."""
    first, second = prediction[0].chunk(2)
    groups = [target["scan"] == scan for scan in target["scan"].unique()]
    dense = [dense_info_nce(first[group].flatten(0, 1), second[group].flatten(0, 1)) for group in groups]
    return torch.stack(dense).mean() + 10 * F.mse_loss(prediction[1], target["original"])


def reference_step(settings: Settings) -> Callable[[], Tensor]:
    """The same network in the default layout and in float32, dense loss, Adam one parameter after the other."""
    torch.manual_seed(0)
    config = config_of(settings)
    network: DenseSSLNetwork = config.get_parsed_content("network_def").to(
        settings.device, memory_format=torch.contiguous_format
    )
    optimizer = torch.optim.Adam(network.parameters(), config.get_parsed_content("learning_rate"), foreach=False)
    views, target = batch_of(settings)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = reference_loss(network(views, target["voxels"]), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def step_call(settings: Settings, kind: str) -> Callable[[], Any]:
    """The call whose memory is measured: a first step, with gradients and the optimiser's state."""
    if kind == "reference":
        return reference_step(settings)
    return our_step(settings, checkpointing=kind == "checkpointing")


def run(settings: Settings) -> Iterator[Row]:
    """Time and memory of a step, and the memory with activation checkpointing."""
    config = config_of(settings)
    ours, reference = our_step(settings), reference_step(settings)
    first = ours().item(), reference().item()
    tolerance = 1e-4 if settings.device == "cpu" else 2e-2
    require(abs(first[0] - first[1]) < tolerance * abs(first[1]), f"the first losses are {first[0]} and {first[1]}")
    crop = " x ".join(str(side) for side in config.get_parsed_content("crop_size"))
    size = f"{len(batch_of(settings)[0])} views of {crop}, {config.get_parsed_content('base_channels')} channels"
    yield time_beside("train/step_time", (ours, reference), settings, size, repeats=3 if settings.quick else 10)
    del ours, reference
    memory = {kind: peak_memory(step_call, kind, settings=settings) for kind in ("ours", "checkpointing", "reference")}
    yield Row("train/step_memory", memory["ours"], memory["reference"], "MB", size, settings)
    yield Row("train/checkpointing_memory", memory["checkpointing"], memory["reference"], "MB", size, settings)
