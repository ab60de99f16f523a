"""From a collated batch to what MONAI's engines pass on: input, target, and arguments of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

Device = torch.device | str | None


def prepare_views(
    batch: Mapping[str, Any],
    device: Device = None,
    non_blocking: bool = False,
    augmentation: Callable[[Tensor], Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, dict[str, Tensor], tuple, dict[str, Tensor]]:
    """Prepare a batch of N view pairs for pre-training and its validation.

    The two views of all pairs go through the network in one call (first views, then second views), so that they share
    batch statistics. `batch` has `view_1`, `view_2` `(N, C, H, W, D)`, `voxels_1`, `voxels_2`, `positions`
    `(N, V, 3)` and `scan` `(N,)`. Where the data loader has augmented the views, it also has `original_1` and
    `original_2`; where it only cuts them, `augmentation` is applied to all 2N views on the device. For
    `SupervisedTrainer` and `SupervisedEvaluator` alike.
    """

    def both(name: str) -> Tensor:
        return torch.cat([batch[f"{name}_{view}"].to(device, non_blocking=non_blocking) for view in (1, 2)])

    voxels = both("voxels")
    scan = torch.as_tensor(batch["scan"]).to(device, non_blocking=non_blocking)
    positions = batch["positions"].to(device, non_blocking=non_blocking)
    views = both("view")
    original = both("original") if "original_1" in batch else views
    if augmentation is not None:
        views = augmentation(views)
    target = {"original": original, "voxels": voxels, "scan": scan, "positions": positions}
    return views, target, (), {"voxels": voxels}


def prepare_partial_labels(
    batch: Mapping[str, Any], device: Device = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Prepare a batch of crops for `PartialLabelLoss`.

    `batch` has `image` `(N, C, H, W, D)`, `label` `(N, 1, H, W, D)` and `annotated` `(N, K)`.
    """

    def plain(key: str) -> Tensor:  # every operation on a MetaTensor costs time on the host
        value = batch[key]
        return (value.as_tensor() if isinstance(value, MetaTensor) else value).to(device, non_blocking=non_blocking)

    return plain("image"), {key: plain(key) for key in ("label", "annotated")}
