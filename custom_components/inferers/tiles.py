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
Predict = Callable[[Tensor], Tensor]
MAIN_MEMORY = torch.device("cpu")
MAX_GPU_VOXELS = 2**25 - 1  # of a tile: GPU kernels count its activations, of up to 64 channels, in 32 bits


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
            the output there is `background`, which stands for no class. None, or "none" on a command line, runs
            everything.
        background: logit of each class where nothing was run; a sigmoid of 2e-9.
        multiple: sizes that "auto" chooses are multiples of it, as is the position of the box: `2 ** (num_scales - 1)`.
        bytes_per_voxel: what the network needs at its peak in single precision, per voxel of a tile.
        memory_share: share of the free memory that "auto" takes, for a tile and for the logits of the scan.
        backend: "torch", or "openvino" on CPUs.
        mirrored: a tile is also run mirrored along its first axis, left to right in RAS order, and the mean of both
            logits is kept; the output channel that each channel is in a mirrored scan (`mirrored_classes_order`). Twice
            the time. None runs the scan as it is.
        dtype: of the result. Half precision rounds logits to 1 in 2,000 and keeps their signs, and takes half the
            memory; a network that gives values above 65,504 needs another.
        cpu_bfloat16: on CPUs, an `nn.Module` computes in bfloat16, with the backend "torch"; see `fast_network`.

    Call it with `inputs` `(N, C, H, W, D)` and a network that gives a tensor `(N, K, H, W, D)` for every size. Returns
    that, in `dtype` and with the inputs' metadata; on the inputs' device, or in main memory where it would take more
    than half of the GPU's share.

    Raises:
        InputError: an overlap outside [0, 1), another tile_size or air, or as `fast_network`.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        tile_size: str | Sequence[int] = "auto",
        overlap: float = 0.25,
        air: float | str | None = None,
        background: float = -20.0,
        multiple: int = 16,
        bytes_per_voxel: float = 1024,
        memory_share: float = 0.5,
        backend: str = "torch",
        mirrored: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float16,
        cpu_bfloat16: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= overlap < 1:
            raise InputError(f"overlap must be at least 0 and smaller than 1, but is {overlap}")
        if tile_size != "auto" and (isinstance(tile_size, str) or len(tile_size) != 3):
            raise InputError(f"tile_size must be auto or three sizes in voxels, but is {tile_size!r}")
        if isinstance(air, str) and air.lower() != "none":
            raise InputError(f"air must be a number or none, but is {air!r}")
        self.crop_size, self.tile_size, self.overlap = tuple(crop_size), tile_size, overlap
        self.air, self.background = None if isinstance(air, str) else air, background
        self.multiple, self.bytes_per_voxel, self.memory_share = multiple, bytes_per_voxel, memory_share
        self.mirrored, self.dtype = mirrored, dtype
        self._fast = FastNetworks(backend, cpu_bfloat16)

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

    def _run(self, image: Tensor, predict: Predict) -> Tensor:
        """Logits of an image; once the GPU's memory is full, in smaller tiles and with the logits in main memory."""
        box = self._box(image)
        size = tuple(max(length, crop) for length, crop in zip(image[box].shape[2:], self.crop_size))
        if not isinstance(self.tile_size, str):
            limits = zip(self.tile_size, self.crop_size, size)
            tile = tuple(max(crop, min(tile, length)) for tile, crop, length in limits)
            steps = [_step(length, part, self.overlap) for length, part in zip(size, tile)]
            return self._blend(image, box, tile, steps, predict, image.device)
        budget = free_memory(image.device) * self.memory_share
        a_voxel = self.bytes_per_voxel * len(image)
        most = math.inf if image.device == MAIN_MEMORY else MAX_GPU_VOXELS / len(image)
        if math.prod(size) > min(budget / a_voxel, most):  # in one piece the network is done before the logits are kept
            first: Place = (..., *(slice(length) for length in self.crop_size))
            channels = predict(self._padded(image[box][first])).shape[1]
            if self._device(image, channels, image.device) == image.device:
                budget -= self._bytes(image, channels)
        voxels, device = int(min(budget / a_voxel, most)), image.device
        while True:
            tile = choose_tile(size, self.crop_size, self.multiple, self.overlap, voxels)
            axes = zip(size, tile, self.crop_size)
            steps = [_step(length, part, self.overlap, crop // 2) for length, part, crop in axes]
            try:
                return self._blend(image, box, tile, steps, predict, device)
            except torch.OutOfMemoryError:
                if tile == self.crop_size and device == MAIN_MEMORY:
                    raise
            voxels, device = math.prod(tile) // 2, MAIN_MEMORY
            logger.warning("out of memory with a tile of %s voxels: trying smaller ones", tile)

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

    def _blend(
        self,
        image: Tensor,
        box: Place,
        tile: tuple[int, ...],
        steps: Sequence[int],
        predict: Predict,
        device: torch.device,
    ) -> Tensor:
        """Logits of the whole image: of tiles inside the box, and `background` elsewhere; on `device`, if they fit."""
        part = image[box]
        size = tuple(part.shape[2:])
        inside = self._inside(size)
        # where the image is smaller than a crop it is padded tile by tile, and the tile is as small as the image
        own = tuple(min(length, total) for length, total in zip(tile, size))
        places: list[Place] = [(..., *place) for place in dense_patch_slices(size, own, steps)]
        logger.debug("%s voxels in %d tiles of %s", size, len(places), tile)
        importance: Tensor | None = None
        if len(places) > 1:
            importance = compute_importance_map(tile, mode=BlendMode.GAUSSIAN, device=image.device, dtype=image.dtype)
            importance = importance[inside]
            if self.air is not None:
                places = [place for place in places if (part[place] > self.air).any()] or places[:1]
        whole: Tensor | None = None
        for place in places:
            logits = predict(self._padded(part[place]))[inside]
            if whole is None:
                channels = logits.shape[1]
                shape = (len(image), channels, *image.shape[2:])
                device = self._device(image, channels, device)
                whole = torch.full(shape, self.background, dtype=self.dtype, device=device)
                for covered in places:
                    whole[box][covered] = 0
            if importance is None:
                whole[box][place] = logits
            else:
                whole[box][place].add_((logits * _share(place, places, importance)).to(whole))
            del logits  # before the network needs the memory for the next tile
        assert whole is not None
        return whole

    def _inside(self, size: Sequence[int]) -> Place:
        """Where an image of this size lies in what `_padded` makes of it."""
        firsts = [max(0, crop - length) // 2 for crop, length in zip(self.crop_size, size)]
        return (..., *(slice(first, first + length) for first, length in zip(firsts, size)))

    def _padded(self, tile: Tensor) -> Tensor:
        """The tile with zeros on both sides, where it is smaller than a crop."""
        lacking = [max(0, crop - length) for crop, length in zip(self.crop_size, tile.shape[2:])]
        # from the last axis to the first
        ends = [length for total in lacking[::-1] for length in (total // 2, total - total // 2)]
        return F.pad(tile, ends) if any(lacking) else tile

    def _bytes(self, image: Tensor, channels: int) -> int:
        """Memory of the logits of an image."""
        return len(image) * channels * math.prod(image.shape[2:]) * self.dtype.itemsize

    def _device(self, image: Tensor, channels: int, device: torch.device) -> torch.device:
        """Where the logits are kept: on `device`, or in main memory if that leaves the network too little."""
        if device == MAIN_MEMORY:
            return device
        left = free_memory(device) * self.memory_share / 2
        return device if self._bytes(image, channels) <= left else MAIN_MEMORY


def _share(place: Place, places: Sequence[Place], importance: Tensor) -> Tensor:
    """The weights of the tile at `place`, of which those of all tiles that cover a voxel sum to 1.

    They are computed here and not for the whole scan, where they would take as much memory as the logits of a class.

    Args:
        places: of all tiles, which have the size of `importance`, `(h, w, d)`.
    """
    starts = np.array([[axis.start for axis in each[1:]] for each in places])
    shifts = starts - [axis.start for axis in place[1:]]
    total = torch.zeros_like(importance)
    for shift in shifts[(np.abs(shifts) < importance.shape).all(1)].tolist():
        here = tuple(slice(max(0, by), length + min(0, by)) for by, length in zip(shift, importance.shape))
        there = tuple(slice(max(0, -by), length - max(0, by)) for by, length in zip(shift, importance.shape))
        total[here] += importance[there]
    return importance / total


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
