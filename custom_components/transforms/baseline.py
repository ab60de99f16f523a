"""The augmentations of vox2vec (Goncharov et al., MICCAI 2023) for CT in HU: blur or sharpen in plane, random window.

The third one, noise of up to 30 HU, is MONAI's `RandGaussianNoised(keys, prob=0.5, std=30.0)`, which draws the standard
deviation uniformly from [0, std] (`sample_std=True`, the default). MONAI shares the noise between the keys of one
transform, so give each view a transform of its own. vox2vec's order is blur or sharpen, noise, window.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor


def blur_in_plane(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of `image` (C, H, W, D) along H and W with `sigma` in voxels; float32, borders repeated."""
    kernel = gaussian_1d(torch.tensor(sigma), normalize=True).to(image.device)
    # slices as a batch: a 2D filter never touches the last axis
    slices = image.float().permute(3, 0, 1, 2)
    return separable_filtering(slices, [kernel, kernel], mode="replicate").permute(1, 2, 3, 0).contiguous()


def sharpen_in_plane(image: torch.Tensor, sigma_1: float, sigma_2: float, alpha: float) -> torch.Tensor:
    """Sharpen `image` (C, H, W, D) along H and W: b + alpha * (b - blur(b, sigma_2)) with b = blur(image, sigma_1).

    The formula of MONAI's `GaussianSharpen`; sigmas in voxels; returns float32.
    """
    blurred = blur_in_plane(image, sigma_1)
    return blurred + alpha * (blurred - blur_in_plane(blurred, sigma_2))


class RandInPlaneBlurOrSharpen(RandomizableTransform):
    """Blur or sharpen, each half of the time, an image (C, H, W, D) along its first two spatial axes.

    In plane only, because slices are thick. Sharpening is an unsharp mask of the slightly blurred image, as in MONAI's
    `GaussianSharpen`. The default ranges are vox2vec's.

    Args:
        prob: probability to do either.
        sigma: range of the blur's standard deviation, in voxels.
        alpha: range of the sharpening's weight.
        sharpen_sigma: range of the standard deviation of sharpening's first blur, in voxels.
        mask_sigma: standard deviation of sharpening's second blur, in voxels.

    Returns:
        float32 of the image's type; where the image is not changed, the image as it is.
    """

    def __init__(
        self,
        prob: float = 0.5,
        sigma: Sequence[float] = (0.25, 1.5),
        alpha: Sequence[float] = (10.0, 30.0),
        sharpen_sigma: Sequence[float] = (0.5, 1.0),
        mask_sigma: float = 0.5,
    ) -> None:
        super().__init__(prob)
        self.sigma = (float(sigma[0]), float(sigma[1]))
        self.alpha = (float(alpha[0]), float(alpha[1]))
        self.sharpen_sigma = (float(sharpen_sigma[0]), float(sharpen_sigma[1]))
        self.mask_sigma = mask_sigma
        self.sharpens = False
        self.drawn_sigma = self.drawn_alpha = 0.0

    def randomize(self, data: Any = None) -> None:
        """Draw which of the two is done, and its strength; `data` is not used."""
        super().randomize(None)
        if not self._do_transform:
            return
        self.sharpens = bool(self.R.random_sample() < 0.5)
        self.drawn_sigma = self.R.uniform(*(self.sharpen_sigma if self.sharpens else self.sigma))
        self.drawn_alpha = self.R.uniform(*self.alpha)

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize()
        if not self._do_transform:
            return img
        plain = img.as_tensor() if isinstance(img, MetaTensor) else torch.as_tensor(img)
        if self.sharpens:
            out = sharpen_in_plane(plain, self.drawn_sigma, self.mask_sigma, self.drawn_alpha)
        else:
            out = blur_in_plane(plain, self.drawn_sigma)
        return convert_to_dst_type(out, dst=img, dtype=out.dtype)[0]


class RandInPlaneBlurOrSharpend(Randomizable, MapTransform):
    """Dictionary form of `RandInPlaneBlurOrSharpen`.

    Every key draws its own parameters, because views are augmented independently; MONAI's transforms share them.

    Args:
        keys: images (C, H, W, D).
        prob, sigma, alpha, sharpen_sigma, mask_sigma: as in `RandInPlaneBlurOrSharpen`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        sigma: Sequence[float] = (0.25, 1.5),
        alpha: Sequence[float] = (10.0, 30.0),
        sharpen_sigma: Sequence[float] = (0.5, 1.0),
        mask_sigma: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.blur_or_sharpen = RandInPlaneBlurOrSharpen(prob, sigma, alpha, sharpen_sigma, mask_sigma)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandInPlaneBlurOrSharpend:
        self.blur_or_sharpen.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.blur_or_sharpen(d[key])
        return d


def window(image: torch.Tensor, lower: float, upper: float) -> torch.Tensor:
    """Clip `image` (any shape, HU) to [lower, upper] and scale that to [0, 1]; float32."""
    return ((image.float() - lower) / (upper - lower)).clamp_(0, 1)


class RandWindow(RandomizableTransform):
    """Clip an image (C, H, W, D) in HU to a random window and scale it to [0, 1].

    Args:
        prob: probability of a random window; otherwise `default` is used, so that the output is always in [0, 1].
        lower: range of the window's lower bound in HU.
        upper: range of its upper bound in HU.
        default: lower and upper bound otherwise, in HU. The default ranges and window are vox2vec's.

    Returns:
        float32 of the image's type in [0, 1].

    Raises:
        ValueError: a window could be empty.
    """

    def __init__(
        self,
        prob: float = 0.8,
        lower: Sequence[float] = (-1350.0, -1000.0),
        upper: Sequence[float] = (300.0, 1000.0),
        default: Sequence[float] = (-1350.0, 1000.0),
    ) -> None:
        super().__init__(prob)
        if max(lower) >= min(upper) or default[0] >= default[1]:
            raise ValueError(
                f"lower bounds must lie below upper bounds but are {lower} and {upper}, with the default {default}"
            )
        self.lower = (float(lower[0]), float(lower[1]))
        self.upper = (float(upper[0]), float(upper[1]))
        self.default = (float(default[0]), float(default[1]))
        self.bounds = self.default

    def randomize(self, data: Any = None) -> None:
        """Draw the window's bounds; `data` is not used."""
        super().randomize(None)
        if self._do_transform:
            self.bounds = (self.R.uniform(*self.lower), self.R.uniform(*self.upper))
        else:
            self.bounds = self.default

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize()
        out = window(img.as_tensor() if isinstance(img, MetaTensor) else torch.as_tensor(img), *self.bounds)
        return convert_to_dst_type(out, dst=img, dtype=out.dtype)[0]


class RandWindowd(Randomizable, MapTransform):
    """Dictionary form of `RandWindow`.

    Every key draws its own parameters, because views are augmented independently; MONAI's transforms share them.

    Args:
        keys: images (C, H, W, D) in HU.
        prob, lower, upper, default: as in `RandWindow`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.8,
        lower: Sequence[float] = (-1350.0, -1000.0),
        upper: Sequence[float] = (300.0, 1000.0),
        default: Sequence[float] = (-1350.0, 1000.0),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.window = RandWindow(prob, lower, upper, default)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandWindowd:
        self.window.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.window(d[key])
        return d
