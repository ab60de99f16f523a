"""Augmentation of a whole batch at once, on the device that it is on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable

from custom_components.errors import InputError


class BatchAugmentation(Randomizable):
    """Apply transforms that have a `batch` method, one after the other, to images (N, C, H, W, D) on their device.

    Every image draws parameters of its own, as the transforms do in a data loader that augments one view after the
    other, from the same distribution. Few random numbers are drawn on the host, the rest on the device.

    Unless `set_random_state` is called, the first batch takes its seed from torch's global one, so that
    `monai.utils.set_determinism` decides it.

    Args:
        transforms: such as `RandLocalShuffle`, `RandBezierIntensity`, `RandInPaint` or their dictionary forms, whose
            keys do not matter here.

    Raises:
        InputError: (a ValueError) a transform has no `batch`.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = list(transforms)
        self.seeded = False
        for transform in self.transforms:
            if not hasattr(transform, "batch"):
                raise InputError(
                    f"{type(transform).__name__} cannot augment a whole batch; leave it to the data loader "
                    "(--augment_on_device False)"
                )

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> BatchAugmentation:
        super().set_random_state(seed, state)
        for transform in self.transforms:
            transform.set_random_state(int(self.R.randint(2**31)))
        self.seeded = True
        return self

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The augmented images, a new tensor where anything changed."""
        if not self.seeded:
            self.set_random_state(int(torch.randint(2**31, ())))
        for transform in self.transforms:
            images = transform.batch(images)
        return images
