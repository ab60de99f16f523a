"""Whole scans through a network, in as few and as large tiles as the memory allows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer
from monai.utils import BlendMode
from torch import Tensor, nn

from custom_components.errors import InputError
from custom_components.networks import FastNetworks

from .memory import free_memory

logger = logging.getLogger(__name__)

Place = Any  # an index: an ellipsis and three slices


class TiledInferer(Inferer):
    """Runs a network on a whole scan in one piece, or, where it does not fit the memory, in overlapping tiles.

    Tiles are blended with Gaussian weights, as MONAI's `SlidingWindowInferer` does; a scan in one piece needs no
    overlap, so that every voxel is computed once. A network that is an `nn.Module` is run in evaluation mode, in the
    form that `fast_network` makes of it.

    Args:
        crop_size: the crops that the network was trained on; no tile is smaller, and a smaller scan is padded with
            zeros on both sides, as in training.
        tile_size: "auto": the tiling that computes the fewest voxels within the memory budget; or three sizes, of
            which no more is used than the scan has.
        overlap: share of a tile, along each axis, that the next one covers too; with "auto" at least half a crop.
        air: tiles whose every value is at most this are not run, nor what lies outside the box of all larger values;
            the output there is `background`, which stands for no class. None runs everything.
        background: logit of each class where nothing was run; a sigmoid of 2e-9.
        multiple: sizes that "auto" chooses are multiples of it, as is the position of the box: `2 ** (num_scales - 1)`.
        bytes_per_voxel: what the network needs at its peak, per voxel of a tile.
        memory_share: share of the free memory that "auto" takes.
        backend: "torch", or "openvino" on CPUs.
        mirrored: a tile is also run mirrored along its first axis, left to right in RAS order, and the mean of both
            logits is kept; the output channel that each channel is in a mirrored scan (`mirrored_classes_order`). Twice
            the time. None runs the scan as it is.

    Call it with `inputs` `(N, C, H, W, D)` and a network that gives a tensor `(N, K, H, W, D)` for every size. Returns
    that, of the inputs' type and with their metadata.

    Raises:
        InputError: an overlap outside [0, 1), another tile_size, or as `fast_network`.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        tile_size: str | Sequence[int] = "auto",
        overlap: float = 0.25,
        air: float | None = None,
        background: float = -20.0,
        multiple: int = 16,
        bytes_per_voxel: float = 1024,
        memory_share: float = 0.5,
        backend: str = "torch",
        mirrored: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= overlap < 1:
            raise InputError(f"overlap must be at least 0 and smaller than 1, but is {overlap}")
        if tile_size != "auto" and (isinstance(tile_size, str) or len(tile_size) != 3):
            raise InputError(f"tile_size must be auto or three sizes in voxels, but is {tile_size!r}")
        self.crop_size, self.tile_size, self.overlap = tuple(crop_size), tile_size, overlap
        self.air, self.background = air, background
        self.multiple, self.bytes_per_voxel, self.memory_share = multiple, bytes_per_voxel, memory_share
        self.mirrored = mirrored
        self._fast = FastNetworks(backend)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        predict = self._fast.of(network) if isinstance(network, nn.Module) else network

        def run(tile: Tensor) -> Tensor:
            logits = predict(tile, *args, **kwargs)
            if self.mirrored is None:
                return logits
            other = predict(tile.flip(2), *args, **kwargs).flip(2)
            return (logits + other[:, self.mirrored]) / 2

        logits = self._run(image, run)
        return MetaTensor(logits).copy_meta_from(inputs, copy_attr=False) if isinstance(inputs, MetaTensor) else logits

    def _run(self, image: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        box = self._box(image)
        part = image[box]
        lacking = [max(0, crop - length) for crop, length in zip(self.crop_size, part.shape[2:])]
        before = [total // 2 for total in lacking]
        inside: Place = (..., *(slice(first, first + length) for first, length in zip(before, part.shape[2:])))
        if any(lacking):
            # from the last axis to the first
            ends = zip(before[::-1], lacking[::-1])
            part = F.pad(part, [length for first, total in ends for length in (first, total - first)])
        logits = self._run_tiles(part, predict)[inside].to(image.dtype)
        if logits.shape[2:] == image.shape[2:]:
            return logits
        whole = logits.new_full((*logits.shape[:2], *image.shape[2:]), self.background)
        whole[box] = logits
        return whole

    def _box(self, image: Tensor) -> Place:
        """The box of all that is not air, with a margin of at least `multiple`; it begins on the coarsest grid."""
        if self.air is None:
            return (...,)
        found = (image > self.air).any(1).any(0)
        box: list[slice] = []
        for axis, (length, crop) in enumerate(zip(found.shape, self.crop_size)):
            occupied = found.any(dim=tuple({0, 1, 2} - {axis})).nonzero().flatten().tolist()
            if not occupied:  # nothing but air: one crop shall tell the number of classes
                box.append(slice(0, min(crop, length)))
                continue
            first, last = occupied[0] // self.multiple, occupied[-1] // self.multiple
            box.append(slice(max(0, first - 1) * self.multiple, min(length, (last + 2) * self.multiple)))
        return (..., *box)

    def _run_tiles(self, image: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits of an image that is nowhere smaller than a crop; once the GPU's memory is full, in smaller tiles."""
        size = tuple(image.shape[2:])
        if not isinstance(self.tile_size, str):
            limits = zip(self.tile_size, self.crop_size, size)
            tile = tuple(max(crop, min(tile, length)) for tile, crop, length in limits)
            steps = [_step(length, part, self.overlap) for length, part in zip(size, tile)]
            return self._blend(image, tile, steps, predict)
        voxels = int(free_memory(image.device) * self.memory_share / self.bytes_per_voxel / len(image))
        while True:
            tile = choose_tile(size, self.crop_size, self.multiple, self.overlap, voxels)
            axes = zip(size, tile, self.crop_size)
            steps = [_step(length, part, self.overlap, crop // 2) for length, part, crop in axes]
            try:
                return self._blend(image, tile, steps, predict)
            except torch.OutOfMemoryError:
                if tile == self.crop_size:
                    raise
            voxels = math.prod(tile) // 2
            logger.warning("out of memory with a tile of %s voxels: trying smaller ones", tile)

    def _blend(
        self, image: Tensor, tile: tuple[int, ...], steps: Sequence[int], predict: Callable[[Tensor], Tensor]
    ) -> Tensor:
        size = tuple(image.shape[2:])
        places: list[Place] = [(..., *place) for place in dense_patch_slices(size, tile, steps)]
        logger.debug("%s voxels in %d tiles of %s", size, len(places), tile)
        if len(places) == 1:
            return predict(image)
        if self.air is not None:
            places = [place for place in places if (image[place] > self.air).any()] or places[:1]
        importance = compute_importance_map(tile, mode=BlendMode.GAUSSIAN, device=image.device, dtype=image.dtype)
        weight = image.new_zeros(size)
        logits: Tensor | None = None
        for place in places:
            part = predict(image[place])
            if logits is None:
                logits = image.new_zeros((*part.shape[:2], *size))
            logits[place].addcmul_(part, importance)
            weight[place] += importance
        assert logits is not None
        skipped = weight == 0
        logits.div_(weight.masked_fill_(skipped, 1))
        return logits.masked_fill_(skipped, self.background)


def choose_tile(
    size: Sequence[int], crop_size: Sequence[int], multiple: int, overlap: float, max_voxels: int
) -> tuple[int, ...]:
    """The tile with which the fewest voxels are computed, overlaps counted as often as they are, of those that fit.

    Tiles overlap by `overlap` and at least by half a crop, as the windows of half overlap do that are common.

    Args:
        size: of the image; nowhere less than `crop_size`.
        crop_size: the smallest tile, taken if no other has at most `max_voxels`.
        multiple: of which the other tiles are, where they are smaller than the image.

    An image of at most `max_voxels` is one tile.
    """
    # the largest first, so that it is taken of two with the same cost
    axes = [
        np.array([length, *range((length - 1) // multiple * multiple, least, -multiple), least])
        for length, least in zip(size, crop_size)
    ]
    costs = []
    for length, least, tiles in zip(size, crop_size, axes):
        steps = np.array([_step(length, int(tile), overlap, least // 2) for tile in tiles])
        costs.append((-(-(length - tiles) // steps) + 1) * tiles)
    voxels, computed = (reduce(np.multiply.outer, values).astype(float) for values in (axes, costs))
    best = np.unravel_index(np.argmin(np.where(voxels <= max_voxels, computed, np.inf)), voxels.shape)
    tile = tuple(int(tiles[index]) for tiles, index in zip(axes, best))
    return tile if math.prod(tile) <= max_voxels else tuple(crop_size)


def _step(length: int, tile: int, overlap: float, at_least: int = 0) -> int:
    """From one tile to the next along an axis, in voxels; tiles overlap by a share and `at_least` by some voxels."""
    return tile if tile == length else max(1, min(int(tile * (1 - overlap)), tile - at_least))
