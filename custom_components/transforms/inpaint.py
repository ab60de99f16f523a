"""In-painting: boxes of an image are filled with uniform noise, for a network to restore.

Source: Zhou et al., Models Genesis (2019), in the setting of Kats et al. (2024).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor


def inpaint_boxes(
    image: torch.Tensor, starts: torch.Tensor, sizes: torch.Tensor, seed: int, fill_range: tuple[float, float]
) -> torch.Tensor:
    """Fill boxes of an image with uniform noise; a new tensor.

    Args:
        image: (C, H, W, D), a floating-point dtype; the boxes are the same in all channels, the noise is not.
        starts, sizes: int64 (B, 3), first voxel and sides of each box; the boxes lie inside the image.
        seed: seed of the noise.
        fill_range: lower and upper bound of the noise, in the image's unit.

    Returns:
        (C, H, W, D), equal to `image` outside the boxes.
    """
    counts = (len(image) * sizes.prod(1)).tolist()
    noise = _noise(sum(counts), image, seed, fill_range)
    out = image.clone()
    # a loop, because a few writes of a box each touch far fewer voxels than one operation on the whole image
    for (x, y, z), (a, b, c), values in zip(starts.tolist(), sizes.tolist(), noise.split(counts), strict=True):
        out[:, x : x + a, y : y + b, z : z + c] = values.view(len(image), a, b, c)
    return out


def inpaint_batch(
    images: torch.Tensor, starts: torch.Tensor, sizes: torch.Tensor, seed: int, fill_range: tuple[float, float]
) -> torch.Tensor:
    """`inpaint_boxes` of images (N, C, H, W, D) in one go, for devices on which a loop over small boxes is slow.

    Args:
        images, seed, fill_range: as in `inpaint_boxes`.
        starts, sizes: int64 (N, B, 3); a box of size 0 is none.
    """
    mask = box_mask(images.shape[2:], starts.to(images.device), sizes.to(images.device))[:, None]
    noise = _noise(images.numel(), images, seed, fill_range)
    return torch.where(mask, noise.view(images.shape), images)


def box_mask(shape: Sequence[int], starts: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Union of boxes as bool (N, H, W, D).

    Args:
        shape: H, W, D in voxels.
        starts, sizes: int64 (N, B, 3), first voxel and sides of each box; a box of size 0 is none.
    """
    inside = []
    for axis, side in enumerate(shape):
        position = torch.arange(side, device=starts.device) - starts[..., axis, None]
        inside.append(((position >= 0) & (position < sizes[..., axis, None])).float())
    # a box is the product of three indicators, so one matrix product over the boxes counts the boxes at every voxel
    across = (inside[1][..., :, None] * inside[2][..., None, :]).flatten(2)
    return (inside[0].mT @ across > 0).view(-1, *shape)


def _noise(count: int, image: torch.Tensor, seed: int, fill_range: tuple[float, float]) -> torch.Tensor:
    generator = torch.Generator(image.device).manual_seed(seed)
    noise = torch.rand(count, generator=generator, device=image.device)
    return noise.mul_(fill_range[1] - fill_range[0]).add_(fill_range[0]).to(image.dtype)


class RandInPaint(RandomizableTransform):
    """Fill random boxes of an image (C, H, W, D) with uniform noise.

    There is one box, a further one with probability `further_box_prob`, and so on up to `max_boxes`. Each side's length
    is uniform over the whole numbers from `min_fraction` to `max_fraction` of the image's side (both rounded down, at
    least 1 voxel), and the box's place is uniform inside the image. Boxes may overlap.

    Not MONAI's `RandCoarseDropout`, which is as fast for one view, because that writes into its input, here the target
    of restoration, draws the number of boxes uniformly, takes sizes in voxels, and loops over the boxes.

    Args:
        prob: probability to in-paint at all.
        max_boxes: largest number of boxes.
        further_box_prob: probability of each box after the first.
        min_fraction, max_fraction: range of a box's side as a fraction of the image's, in [0, 1].
        fill_range: bounds of the noise, in the image's unit.

    Returns:
        the image's type and dtype, float32 where that is not a floating-point one; the input is not changed.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        prob: float = 1.0,
        max_boxes: int = 30,
        further_box_prob: float = 0.95,
        min_fraction: float = 0.1,
        max_fraction: float = 0.2,
        fill_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__(prob)
        if max_boxes < 1 or not 0 <= further_box_prob <= 1 or not 0 <= min_fraction <= max_fraction <= 1:
            raise ValueError(
                "max_boxes must be positive, further_box_prob in [0, 1] and 0 <= min_fraction <= max_fraction <= 1, "
                f"but they are {max_boxes}, {further_box_prob}, {min_fraction}, {max_fraction}"
            )
        self.max_boxes = max_boxes
        self.further_box_prob = further_box_prob
        self.min_fraction = min_fraction
        self.max_fraction = max_fraction
        self.fill_range = (float(fill_range[0]), float(fill_range[1]))
        self.starts = torch.zeros(0, 3, dtype=torch.int64)
        self.sizes = torch.zeros(0, 3, dtype=torch.int64)
        self.seed = 0

    def draw_boxes(self, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """First voxels and sides, int64 (B, 3) each, of random boxes in an image of the spatial shape (H, W, D)."""
        further = self.R.random_sample(self.max_boxes - 1) < self.further_box_prob
        boxes = 1 + int(np.logical_and.accumulate(further).sum())
        side = np.array(shape)
        # 1e-6: 0.29 * 100 is 28.999...
        smallest, largest = (
            np.maximum(1, (side * f + 1e-6).astype(int)) for f in (self.min_fraction, self.max_fraction)
        )
        sizes = smallest + (self.R.random_sample((boxes, 3)) * (largest - smallest + 1)).astype(int)
        starts = (self.R.random_sample((boxes, 3)) * (side - sizes + 1)).astype(int)
        return torch.from_numpy(starts), torch.from_numpy(sizes)

    def randomize(self, shape: Sequence[int]) -> None:  # type: ignore[override]
        """Draw the boxes in an image of the spatial shape (H, W, D), and the seed of the noise."""
        super().randomize(None)
        if self._do_transform:
            self.starts, self.sizes = self.draw_boxes(shape)
            self.seed = int(self.R.randint(2**31))

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize(img.shape[1:])
        if not self._do_transform:
            return img
        plain = img.as_tensor() if isinstance(img, MetaTensor) else torch.as_tensor(img)
        plain = plain if plain.is_floating_point() else plain.float()
        out = inpaint_boxes(plain, self.starts, self.sizes, self.seed, self.fill_range)
        return convert_to_dst_type(out, dst=img, dtype=out.dtype)[0]

    def batch(self, images: torch.Tensor) -> torch.Tensor:
        """The same on images (N, C, H, W, D), each with boxes of its own, on their device in one go."""
        starts, sizes = torch.zeros(2, len(images), self.max_boxes, 3, dtype=torch.int64)
        for number in range(len(images)):
            if self.R.random_sample() < self.prob:
                drawn = self.draw_boxes(images.shape[2:])
                starts[number, : len(drawn[0])], sizes[number, : len(drawn[0])] = drawn
        images = images if images.is_floating_point() else images.float()
        seed = int(self.R.randint(2**31))
        if images.device.type == "cpu":
            seeds = np.random.default_rng(seed).integers(2**31, size=len(images)).tolist()
            parameters = zip(images, starts, sizes, seeds, strict=True)
            return torch.stack([inpaint_boxes(*of_image, self.fill_range) for of_image in parameters])
        return inpaint_batch(images, starts, sizes, seed, self.fill_range)


class RandInPaintd(Randomizable, MapTransform):
    """Dictionary form of `RandInPaint`.

    Every key draws its own parameters, because views are augmented independently; MONAI's transforms share them.

    Args:
        keys: images (C, H, W, D).
        prob, max_boxes, further_box_prob, min_fraction, max_fraction, fill_range: as in `RandInPaint`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        max_boxes: int = 30,
        further_box_prob: float = 0.95,
        min_fraction: float = 0.1,
        max_fraction: float = 0.2,
        fill_range: Sequence[float] = (0.0, 1.0),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.inpaint = RandInPaint(prob, max_boxes, further_box_prob, min_fraction, max_fraction, fill_range)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandInPaintd:
        self.inpaint.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.inpaint(d[key])
        return d

    def batch(self, images: torch.Tensor) -> torch.Tensor:
        """As `RandInPaint.batch`."""
        return self.inpaint.batch(images)
