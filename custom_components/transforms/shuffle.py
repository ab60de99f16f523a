"""Local pixel shuffling: the voxels of many small blocks are permuted, each block on its own.

Source: Zhou et al., Models Genesis (2019), in the setting of Kats et al. (2024): 5,000 blocks of 1/20 of each side.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

PIECE = 1 << 16  # voxels


def shuffle_blocks(
    image: torch.Tensor, block_starts: torch.Tensor, block_size: Sequence[int], permutations: torch.Tensor
) -> torch.Tensor:
    """Permute the voxels inside blocks of an image, or of a batch of images; a new tensor.

    Args:
        image: (C, H, W, D), or (N, C, H, W, D) for a batch, any dtype; all channels are permuted alike.
        block_starts: int64 (K, 3), first voxel of each block; for a batch (K, 4), the image's number before it. The
            blocks lie inside the image and do not overlap.
        block_size: the blocks' sides in voxels; V is their product.
        permutations: int32 or int64 (K, V); voxel j of block k takes the value of voxel `permutations[k, j]` of that
            block, where a block's voxels are counted with the last axis fastest.

    Returns:
        the image's shape, with the same values in another order.
    """
    channels, height, width, depth = image.shape[-4:]
    volume = height * width * depth
    strides = torch.tensor([channels * volume, width * depth, depth, 1], device=image.device)
    axes = [torch.arange(side, device=image.device) for side in block_size]
    within = (torch.cartesian_prod(*axes).view(-1, 3) * strides[1:]).sum(1)
    first = (block_starts.to(image.device) * strides[-block_starts.shape[1] :]).sum(1, keepdim=True)
    flat = image.reshape(-1)
    out = flat.clone()
    # on a CPU in pieces that stay in the cache: fresh memory for all indices at once takes most of the time
    step = max(1, PIECE // len(within)) if image.device.type == "cpu" else max(1, len(first))
    for piece, order in zip(first.split(step), permutations.to(image.device).split(step), strict=True):
        target = piece + within
        source = target.gather(1, order.long()).flatten()
        target = target.flatten()
        for start in range(0, channels * volume, volume):
            # blocks do not overlap, so every target is written once and the order of writing does not matter
            out[start:].scatter_(0, target, flat[start:].index_select(0, source))
    return out.view(image.shape)


def random_permutations(count: int, length: int, seed: int, device: torch.device | None = None) -> torch.Tensor:
    """`count` independent, random permutations of 0 ... length - 1, int32 or int64 (count, length).

    Uniform but for ties of random numbers, which keep their order: of 24 bits or more each, below 0.002 a permutation.
    """
    bits = (length - 1).bit_length()
    if device is None or device.type == "cpu":
        # sorting random numbers that carry their index in the lowest bits takes a third of the time of NumPy's
        # `permuted` and a tenth of torch's `argsort`
        size = 32 if bits <= 8 else 64
        words = np.random.default_rng(seed).integers(0, 2**64, -(-count * length * size // 64), dtype=np.uint64)
        keys = words.view(f"uint{size}")[: count * length].reshape(count, length)
        index = keys.dtype.type(2**bits - 1)
        keys &= ~index
        keys |= np.arange(length, dtype=keys.dtype)
        keys.sort(axis=1)
        keys &= index
        return torch.from_numpy(keys.view(f"int{size}"))
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(2**62, (count, length), generator=generator, device=device).argsort(1)


class RandLocalShuffle(RandomizableTransform):
    """Permute the voxels inside many small blocks of an image (C, H, W, D) of any intensity range.

    A block's side is `block_fraction` of the image's, rounded down, at least `min_block_size` and at most the image's
    side: 6 x 6 x 2 voxels for a view of 128 x 128 x 32, where the reference has 6 x 6 x 1. The blocks are cells of a
    regular grid with a random offset, chosen without repetition: `num_blocks`, or all cells where the grid has fewer.
    So blocks do not overlap, the histogram is kept exactly, and each block has a permutation of its own, the same in
    all channels. With the defaults 5,000 of up to 7,056 cells, two thirds of such a view, are shuffled.

    Args:
        prob: probability to shuffle at all.
        num_blocks: number of blocks.
        block_fraction: a block's side as a fraction of the image's, in (0, 1].
        min_block_size: smallest side of a block in voxels.

    Returns:
        the image's type and dtype; the input is not changed.

    Raises:
        ValueError: a block would hold a single voxel, so that nothing could be shuffled, or a setting is out of range.
    """

    def __init__(
        self, prob: float = 0.8, num_blocks: int = 5000, block_fraction: float = 0.05, min_block_size: int = 2
    ) -> None:
        super().__init__(prob)
        if num_blocks < 1 or not 0 < block_fraction <= 1 or min_block_size < 1:
            raise ValueError(
                "num_blocks and min_block_size must be positive and block_fraction in (0, 1], "
                f"but they are {num_blocks}, {min_block_size}, {block_fraction}"
            )
        self.num_blocks = num_blocks
        self.block_fraction = block_fraction
        self.min_block_size = min_block_size
        self.block_starts = torch.zeros(0, 3, dtype=torch.int64)
        self.permutations = torch.zeros(0, 0, dtype=torch.int64)

    def block_size(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Sides of a block, in voxels, for an image of the spatial shape (H, W, D)."""
        # 1e-6: 0.29 * 100 is 28.999...
        return tuple(min(n, max(self.min_block_size, int(n * self.block_fraction + 1e-6))) for n in shape)

    def draw_blocks(self, shape: Sequence[int]) -> torch.Tensor:
        """Random blocks of an image of the spatial shape (H, W, D): their first voxels, int64 (K, 3)."""
        size = self.block_size(shape)
        offset = np.array([self.R.randint(min(b, n - b + 1)) for n, b in zip(shape, size, strict=True)])
        grid = (np.array(shape) - offset) // size
        generator = np.random.default_rng(self.R.randint(2**31))
        cells = int(grid.prod())
        chosen = generator.choice(cells, min(self.num_blocks, cells), replace=False, shuffle=False)
        return torch.from_numpy(np.stack(np.unravel_index(chosen, grid), 1) * size + offset)

    def randomize(self, shape: Sequence[int]) -> None:  # type: ignore[override]
        """Draw the blocks of an image of the spatial shape (H, W, D) and their permutations."""
        super().randomize(None)
        volume = self._block_volume(shape)
        if self._do_transform:
            self.block_starts = self.draw_blocks(shape)
            self.permutations = random_permutations(len(self.block_starts), volume, self.R.randint(2**31))

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize(img.shape[1:])
        if not self._do_transform:
            return img
        plain = img.as_tensor() if isinstance(img, MetaTensor) else torch.as_tensor(img)
        out = shuffle_blocks(plain, self.block_starts, self.block_size(plain.shape[1:]), self.permutations)
        return convert_to_dst_type(out, dst=img, dtype=out.dtype)[0]

    def batch(self, images: torch.Tensor) -> torch.Tensor:
        """The same on images (N, C, H, W, D), each with parameters of its own, on their device in one go."""
        shape = images.shape[2:]
        volume = self._block_volume(shape)
        blocks = [self.draw_blocks(shape) if self.R.random_sample() < self.prob else None for _ in images]
        starts = [F.pad(b, (1, 0), value=number) for number, b in enumerate(blocks) if b is not None]
        if not starts:
            return images
        joined = torch.cat(starts)
        permutations = random_permutations(len(joined), volume, self.R.randint(2**31), images.device)
        return shuffle_blocks(images, joined, self.block_size(shape), permutations)

    def _block_volume(self, shape: Sequence[int]) -> int:
        size = self.block_size(shape)
        volume = math.prod(size)
        if volume < 2:
            raise ValueError(
                f"a block of an image of {tuple(shape)} voxels would be {size}, a single voxel, which cannot be "
                "shuffled; use a larger image, block_fraction or min_block_size"
            )
        return volume


class RandLocalShuffled(Randomizable, MapTransform):
    """Dictionary form of `RandLocalShuffle`.

    Every key draws its own parameters, because views are augmented independently; MONAI's transforms share them.

    Args:
        keys: images (C, H, W, D).
        prob, num_blocks, block_fraction, min_block_size: as in `RandLocalShuffle`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.8,
        num_blocks: int = 5000,
        block_fraction: float = 0.05,
        min_block_size: int = 2,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.shuffle = RandLocalShuffle(prob, num_blocks, block_fraction, min_block_size)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandLocalShuffled:
        self.shuffle.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.shuffle(d[key])
        return d

    def batch(self, images: torch.Tensor) -> torch.Tensor:
        """As `RandLocalShuffle.batch`."""
        return self.shuffle.batch(images)
