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


def config_of(settings: Settings, **options: Any) -> tuple[Any, Any]:
    """The bundle's inference config and its network, with the released weights, or random ones where there are none."""
    torch.manual_seed(0)
    config = bundle_config(BUNDLE, "inference", device=torch.device(settings.device), **options)
    network = config.get_parsed_content("network").eval()
    weights = BUNDLES / BUNDLE / "models" / "model.pt"
    if weights.is_file():
        load_weights(network, weights)
    return config, network


def reference_inferer(config: Any) -> SlidingWindowInferer:
    """Windows of the training crop that overlap by half."""
    return SlidingWindowInferer(config.get_parsed_content("crop_size"), 4, overlap=0.5, mode="gaussian")


def volume_call(settings: Settings, kind: str, shape: Sequence[int]) -> Callable[[], Tensor]:
    """The call that is measured: image to logits (ours: of the bundle's inferer) or probabilities (reference)."""
    config, network = config_of(settings)
    image = image_of(settings, shape)
    precision = torch.autocast(
        settings.device, config.get_parsed_content("amp_dtype"), config.get_parsed_content("amp")
    )
    inferer = config.get_parsed_content("inferer")
    reference = reference_inferer(config)
    with torch.inference_mode():
        network(image[..., :16, :16, :16])  # what the libraries keep for themselves

    def ours() -> Tensor:
        with torch.inference_mode(), precision:
            return inferer(image, network)

    def theirs() -> Tensor:
        with torch.inference_mode():
            return torch.sigmoid(reference(image, network))  # type: ignore[arg-type]

    return ours if kind == "ours" else theirs


def check_equal(settings: Settings, shape: Sequence[int] = (56, 48, 40)) -> None:
    """The bundle's inferer gives the reference's logits where it takes the same tiles, and runs those of air too.

    Both compute and keep single precision, in which a GPU's convolutions round more than a CPU's.
    """
    same: dict[str, Any] = {"tile_size": "@crop_size", "overlap": 0.5, "air": None}
    exact: dict[str, Any] = {"inferer#dtype": "$torch.float32", "cpu_bfloat16": False}
    config, network = config_of(settings, **same, **exact)
    image = image_of(settings, shape)
    with torch.inference_mode():
        ours = config.get_parsed_content("inferer")(image, network)
        expected = reference_inferer(config)(image, network)
    assert isinstance(expected, Tensor)
    require(ours.shape == expected.shape, f"our logits are {tuple(ours.shape)} and not {tuple(expected.shape)}")
    difference, largest = (ours - expected).abs().max().item(), expected.abs().max().item()
    tolerance = 1e-4 if settings.device == "cpu" else 2e-2
    require(
        difference < tolerance * largest,
        f"our logits differ by {difference:.3g} from the reference's in the same tiles, of which the largest is "
        f"{largest:.3g}",
    )


def run(settings: Settings) -> Iterator[Row]:
    """Time and memory of a scan."""
    check_equal(settings)
    shape = (48, 48, 48) if settings.quick else (128, 128, 96)
    size = "{} x {} x {} voxels".format(*shape)
    calls = volume_call(settings, "ours", shape), volume_call(settings, "reference", shape)
    shapes = [tuple(call().shape[-3:]) for call in calls]
    require(shapes == [shape, shape], f"the results are of {shapes} voxels and not of {shape}")
    yield time_beside("infer/volume_time", calls, settings, size, repeats=2 if settings.quick else 3)
    del calls
    kinds = [(kind, shape) for kind in ("ours", "reference")]
    yield memory_beside("infer/volume_memory", volume_call, kinds, settings, size)
