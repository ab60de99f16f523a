"""Non-linear intensity change along a random, monotone cubic Bezier curve.

Source: Zhou et al., Models Genesis (2019), in the setting of Kats et al. (2024).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

PIECE = 1 << 16  # voxels


def bezier_table(control_points: torch.Tensor, num_points: int) -> torch.Tensor:
    """Values of a cubic Bezier curve from (0, 0) to (1, 1) at equally spaced intensities.

    The curve is monotone for all control points in [0, 1]: the derivative of each coordinate, over 3, is
    p * ((1-t)^2 - 2t(1-t)) + q * (2t(1-t) - t^2) + t^2, linear in p and in q, so smallest at a corner of [0, 1]^2,
    where it is t^2, (1-2t)^2, 2t(1-t) or (1-t)^2.

    Args:
        control_points: (2, 2), the two inner control points, each (intensity, value) in [0, 1]; (N, 2, 2) for N curves.
        num_points: number of intensities, from 0 to 1.

    Returns:
        float32 (num_points,) or (N, num_points), in [0, 1] and not decreasing.
    """
    points = control_points.double()
    t = torch.linspace(0, 1, num_points, dtype=torch.float64, device=points.device)
    weights = torch.stack([3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t)])
    # rounding may break monotony by 1e-16
    x, y = (points.mT @ weights + t**3).cummax(-1).values.unbind(-2)
    # number of points of the curve to the left of each intensity; counting them is faster than searching the sorted x
    right_of = (x * (num_points - 1)).long() + 1
    count = x.new_zeros(*x.shape[:-1], num_points + 1, dtype=torch.int64)
    right = count.scatter_add_(-1, right_of, torch.ones_like(right_of)).cumsum(-1)[..., :-1].clamp_(1, num_points - 1)
    x_left, y_left = x.gather(-1, right - 1), y.gather(-1, right - 1)
    fraction = ((t - x_left) / (x.gather(-1, right) - x_left).clamp_min(1e-12)).clamp_(0, 1)
    return torch.lerp(y_left, y.gather(-1, right), fraction).clamp_(0, 1).float()


def apply_table(image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """`table` (T,), values at equally spaced intensities from 0 to 1, at the nearest intensity to each voxel's.

    `image` has any shape and is clamped to [0, 1]; returns float32 of that shape. A batch (N, ...) may have a table for
    each image, (N, T).
    """
    table = table.to(image.device)
    rows = image.reshape(len(table) if table.ndim == 2 else 1, -1)
    first = torch.arange(len(rows), dtype=torch.int32, device=image.device)[:, None] * table.shape[-1]
    out = torch.empty(rows.shape, device=image.device)
    # on a CPU in pieces that stay in the cache: fresh memory for whole intermediate images takes most of the time
    step = max(1, PIECE // len(rows)) if image.device.type == "cpu" else max(1, rows.shape[1])
    for start in range(0, rows.shape[1], step):
        piece = rows[:, start : start + step].float().clamp(0, 1)
        nearest = piece.mul_(table.shape[-1] - 1).add_(0.5).to(torch.int32)
        if len(rows) > 1:
            nearest += first
        out[:, start : start + step] = table.flatten().index_select(0, nearest.flatten()).view(nearest.shape)
    return out.view(image.shape)


class RandBezierIntensity(RandomizableTransform):
    """Map the intensities of an image (C, H, W, D) in [0, 1] along a random, monotone cubic Bezier curve.

    The curve runs from (0, 0) to (1, 1); its two inner control points are uniform in [0, 1]^2. It is read from a table:
    the result is the exact value of an intensity at most 4 / (num_points - 1) = 2.4e-4 away. The error is below 1e-3,
    except on a nearly vertical piece of the curve. Values outside [0, 1] are clamped.

    Args:
        prob: probability to change the image at all.
        num_points: length of the table.

    Returns:
        float32 of the image's type in [0, 1]; where the image is not changed, the image as it is.

    Raises:
        ValueError: `num_points` below 2.
    """

    def __init__(self, prob: float = 0.9, num_points: int = 16384) -> None:
        super().__init__(prob)
        if num_points < 2:
            raise ValueError(f"num_points must be at least 2 but is {num_points}")
        self.num_points = num_points
        self.control_points = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)

    def randomize(self, data: Any = None) -> None:
        """Draw the control points; `data` is not used."""
        super().randomize(None)
        if self._do_transform:
            self.control_points = torch.from_numpy(self.R.random_sample((2, 2)))

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize()
        if not self._do_transform:
            return img
        plain = img.as_tensor() if isinstance(img, MetaTensor) else torch.as_tensor(img)
        out = apply_table(plain, bezier_table(self.control_points, self.num_points))
        return convert_to_dst_type(out, dst=img, dtype=out.dtype)[0]

    def batch(self, images: torch.Tensor) -> torch.Tensor:
        """The same on images (N, C, H, W, D), each with a curve of its own, on their device in one go."""
        drawn = {number: self.R.random_sample((2, 2)) for number in range(len(images)) if self._drawn()}
        if not drawn:
            return images
        points = torch.from_numpy(np.stack(list(drawn.values()))).to(images.device)
        chosen = torch.tensor(list(drawn), device=images.device)
        out = images.float()
        return out.index_copy(0, chosen, apply_table(out[chosen], bezier_table(points, self.num_points)))

    def _drawn(self) -> bool:
        return self.R.random_sample() < self.prob


class RandBezierIntensityd(Randomizable, MapTransform):
    """Dictionary form of `RandBezierIntensity`.

    Every key draws its own parameters, because views are augmented independently; MONAI's transforms share them.

    Args:
        keys: images (C, H, W, D) in [0, 1].
        prob, num_points: as in `RandBezierIntensity`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 0.9, num_points: int = 16384, allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.bezier = RandBezierIntensity(prob, num_points)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandBezierIntensityd:
        self.bezier.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.bezier(d[key])
        return d

    def batch(self, images: torch.Tensor) -> torch.Tensor:
        """As `RandBezierIntensity.batch`."""
        return self.bezier.batch(images)
