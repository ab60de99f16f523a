"""A step of pre-training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from custom_components.networks import DenseSSLNetwork

from .loss import dense_info_nce
from .settings import Row, Settings, bundle_config, require
from .timing import peak_memory, time_alone, time_beside

# TFLOP/s of dense bfloat16 products summed in float32, by their makers' data sheets and the names that
# `torch.cuda.get_device_name` gives; weaker versions (PCIe, NVL, MIG) have other names and are not here.
PEAK_TFLOPS = {
    "NVIDIA H200": 989.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA L4": 121.0,
    "NVIDIA GeForce RTX 4090": 165.0,
}


def overrides(settings: Settings, paper: bool = False) -> dict[str, Any]:
    """The bundle's settings on a GPU, or where they are the paper's; else those for two CPU cores; small ones for a
    quick look."""
    if settings.quick:
        return {"base_channels": 8, "crop_size": [32, 32, 16], "scans_per_step": 2, "pairs_per_scan": 1}
    if settings.device == "cuda" or paper:
        return {}
    return {"crop_size": [40, 40, 32], "scans_per_step": 3, "pairs_per_scan": 1}


def config_of(settings: Settings, paper: bool = False, **options: Any) -> Any:
    """The training config of `ct_dense_ssl`, or with `paper` that of `paper.json`."""
    names = ("train", "paper") if paper else ("train",)
    device = torch.device(settings.device)
    return bundle_config("ct_dense_ssl", *names, device=device, **overrides(settings, paper), **options)


def size_of(config: Any) -> str:
    """A step's input and network, in words."""
    crop, scans, pairs = (config.get_parsed_content(key) for key in ("crop_size", "scans_per_step", "pairs_per_scan"))
    views = f"{2 * scans * pairs} views of {' x '.join(str(side) for side in crop)}"
    return f"{views}, {config.get_parsed_content('base_channels')} channels"


def batch_of(settings: Settings, paper: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Random views `(2N, 1, H, W, D)`, all first before all second, and what the loss wants of them."""
    config = config_of(settings, paper)
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


def our_step(settings: Settings, paper: bool = False, **options: Any) -> Callable[[], Tensor]:
    """The bundle's network, loss, precision and optimiser.

    Args:
        options: overrides of its config.
    """
    torch.manual_seed(0)
    config = config_of(settings, paper, **options)
    network, loss_function, optimizer = (config.get_parsed_content(key) for key in ("network", "loss", "optimizer"))
    precision = torch.autocast(
        settings.device, config.get_parsed_content("amp_dtype"), config.get_parsed_content("amp")
    )
    inferer = config.get_parsed_content("train#inferer")
    views, target = batch_of(settings, paper)

    def step() -> Tensor:
        optimizer.zero_grad()
        with precision:
            loss = loss_function(inferer(views, network, target["voxels"]), target)
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


def step_call(settings: Settings, kind: str, paper: bool = False) -> Callable[[], Any]:
    """The call whose memory is measured: a first step, with gradients and the optimiser's state."""
    if kind == "reference":
        return reference_step(settings)
    return our_step(settings, paper, checkpointing=kind == "checkpointing")


def flops_of(step: Callable[[], Any]) -> int:
    """Floating-point operations of a step, forwards and backwards: of its convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def paper_rows(settings: Settings, peak_tflops: float | None) -> Iterator[Row]:
    """What a step of the paper's size takes, as it is and with activation checkpointing; there is no reference.

    The share of the chip's peak counts what the step needs as it is: what checkpointing computes again is no gain.

    Args:
        peak_tflops: of the device, 10^12 operations a second; None leaves the share out.
    """
    config = config_of(settings, paper=True)
    size = f"{size_of(config)}, {config.get_parsed_content('num_scales')} scales"
    voxels = batch_of(settings, paper=True)[0].numel()
    flops: int | None = None
    for kind in ("step", "checkpointing"):
        try:
            step = step_call(settings, kind, paper=True)
            time = time_alone(f"train/paper_{kind}_time", step, settings, size, repeats=2 if settings.quick else 10)
            # the operations of one step without checkpointing serve both, and are counted after it fitted the memory
            if kind == "step":
                flops = flops_of(step)
            del step
            memory = peak_memory(step_call, kind, True, settings=settings)
        except torch.OutOfMemoryError:
            print(f"train/paper_{kind}: does not fit the GPU's memory", file=sys.stderr)
            continue
        yield time
        yield Row(f"train/paper_{kind}_rate", voxels / time.ours / 1e6, None, "Mvoxel/s", size, settings)
        if peak_tflops is not None and flops is not None:
            share = 100 * flops / time.ours / (peak_tflops * 1e12)
            yield Row(f"train/paper_{kind}_peak_share", share, None, "%", size, settings)
        yield Row(f"train/paper_{kind}_memory", memory, None, "MB", size, settings)


def run(settings: Settings) -> Iterator[Row]:
    """Time and memory of a step, and the memory with activation checkpointing; on a GPU also at the paper's size."""
    ours, reference = our_step(settings), reference_step(settings)
    first = our_step(settings, cpu_bfloat16=False)().item(), reference().item()
    tolerance = 1e-4 if settings.device == "cpu" else 2e-2
    require(abs(first[0] - first[1]) < tolerance * abs(first[1]), f"the first losses are {first[0]} and {first[1]}")
    size = size_of(config_of(settings))
    yield time_beside("train/step_time", (ours, reference), settings, size, repeats=3 if settings.quick else 10)
    del ours, reference
    memory = {kind: peak_memory(step_call, kind, settings=settings) for kind in ("ours", "checkpointing", "reference")}
    yield Row("train/step_memory", memory["ours"], memory["reference"], "MB", size, settings)
    yield Row("train/checkpointing_memory", memory["checkpointing"], memory["reference"], "MB", size, settings)
    if settings.device == "cuda":
        yield from paper_rows(settings, PEAK_TFLOPS.get(torch.cuda.get_device_name()))
