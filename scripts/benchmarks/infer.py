"""Segmentation of a whole scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from custom_components.networks import load_weights

from .scans import phantom_volume
from .settings import BUNDLES, Row, Settings, bundle_config, require
from .timing import memory_beside, time_beside

BUNDLE = "head_neck_ct_segmentation"


def image_of(settings: Settings, shape: Sequence[int]) -> Tensor:
    """A phantom as the network sees it, `(1, 1, H, W, D)`."""
    volume, _ = phantom_volume(shape, times=2)
    volume = (volume.clip(-175, 250).astype(np.float32) + 175) / 425
    return torch.from_numpy(volume[None, None]).to(settings.device)


def config_of(settings: Settings) -> tuple[Any, Any]:
    """The bundle's inference config and its network, with the released weights, or random ones where there are none."""
    torch.manual_seed(0)
    config = bundle_config(BUNDLE, "inference", device=torch.device(settings.device))
    network = config.get_parsed_content("network").eval()
    weights = BUNDLES / BUNDLE / "models" / "model.pt"
    if weights.is_file():
        load_weights(network, weights)
    return config, network


def volume_call(settings: Settings, kind: str, shape: Sequence[int]) -> Callable[[], Tensor]:
    """The call that is measured: image to logits (ours: of the bundle's inferer) or probabilities (reference)."""
    config, network = config_of(settings)
    image = image_of(settings, shape)
    precision = torch.autocast(settings.device, enabled=config.get_parsed_content("amp"))
    inferer = config.get_parsed_content("inferer")
    reference = SlidingWindowInferer(config.get_parsed_content("crop_size"), 4, overlap=0.5, mode="gaussian")
    with torch.inference_mode():
        network(image[..., :16, :16, :16])  # what the libraries keep for themselves

    def ours() -> Tensor:
        with torch.inference_mode(), precision:
            return inferer(image, network)

    def theirs() -> Tensor:
        with torch.inference_mode():
            return torch.sigmoid(reference(image, network))  # type: ignore[arg-type]

    return ours if kind == "ours" else theirs


def run(settings: Settings) -> Iterator[Row]:
    """Time and memory of a scan."""
    shape = (72, 72, 72) if settings.quick else (128, 128, 96)
    size = "{} x {} x {} voxels".format(*shape)
    calls = volume_call(settings, "ours", shape), volume_call(settings, "reference", shape)
    shapes = [tuple(call().shape[-3:]) for call in calls]
    require(shapes == [shape, shape], f"the results are of {shapes} voxels and not of {shape}")
    yield time_beside("infer/volume_time", calls, settings, size, repeats=2 if settings.quick else 3)
    del calls
    kinds = [(kind, shape) for kind in ("ours", "reference")]
    yield memory_beside("infer/volume_memory", volume_call, kinds, settings, size)
