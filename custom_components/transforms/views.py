"""Two random crops of a scan around a common body voxel, with the positions of the voxels that they share."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform

from custom_components.errors import InputError

from .checks import scan_name
from .frames import Frame, interpolate, random_matrix, shared_voxels

TRIES_PER_ROUND = 8  # few: each try may read another page of the disk, and most bodies fill a third of their scan
ROUNDS = 256


class ViewPair(NamedTuple):
    """Two views, float32 (C, *crop_size), and their common voxels, int64 (max_voxels, 3).

    Row i of `voxels_1` and of `voxels_2` is the position of one body voxel in view 1 and in view 2; rows beyond the
    number of common voxels are -1 in both. `positions`, float32 (max_voxels, 3), says where the voxels of view 1 lie in
    the scan, in its voxels.
    """

    view_1: torch.Tensor
    view_2: torch.Tensor
    voxels_1: torch.Tensor
    voxels_2: torch.Tensor
    positions: torch.Tensor


def as_array(tensor: NdarrayOrTensor) -> np.ndarray:
    """An array on the same memory; nothing is read from a memory map."""
    if isinstance(tensor, MetaTensor):
        tensor = tensor.as_tensor()
    return tensor.detach().cpu().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)


def random_body_voxel(body: np.ndarray, random: np.random.RandomState) -> tuple[int, int, int] | None:
    """A uniformly random position where `body` (H, W, D) is not 0; None where it is 0 everywhere.

    Random positions are looked up until one lies in the body: the first that does is uniform over the body. A small
    body that is missed over and over is searched instead, which is uniform as well.
    """
    for _ in range(ROUNDS):
        tries = np.unravel_index(random.randint(0, body.size, TRIES_PER_ROUND, dtype=np.int64), body.shape)
        hits = np.flatnonzero(body[tries])
        if len(hits):
            return tuple(int(axis[hits[0]]) for axis in tries)  # type: ignore[return-value]
    inside = np.flatnonzero(body)
    if not len(inside):
        return None
    chosen = inside[random.randint(0, len(inside), dtype=np.int64)]
    return tuple(int(index) for index in np.unravel_index(chosen, body.shape))  # type: ignore[return-value]


def crop_start_range(anchor: int, side: int, crop: int) -> tuple[int, int]:
    """First and last start, in voxels, of a crop of length `crop` that contains `anchor` on an axis of length `side`.

    A crop inside the axis starts at 0 or later; one longer than the axis starts at 0 or before and contains all of it.
    """
    return max(min(0, side - crop), anchor - crop + 1), min(max(0, side - crop), anchor)


def cut_view(
    image: NdarrayOrTensor, start: Sequence[int], crop_size: Sequence[int], pad_value: float = 0.0
) -> torch.Tensor:
    """The crop of `image` (C, H, W, D) at `start`, as float32 (C, *crop_size).

    `pad_value` stands where the crop lies outside the image. Only the crop is read from a memory-mapped image.
    """
    array = as_array(image)
    inside = [(max(s, 0), min(s + c, n)) for s, c, n in zip(start, crop_size, array.shape[1:], strict=True)]
    stored = array[(slice(None), *(slice(low, high) for low, high in inside))]
    # copied as it is stored and then converted by torch, which is five times as fast from float16 as NumPy
    crop = torch.from_numpy(np.array(stored, dtype=array.dtype.newbyteorder("="))).float()
    if crop.shape[1:] == tuple(crop_size):
        return crop
    view = crop.new_full((len(crop), *crop_size), pad_value)
    target = tuple(slice(low - s, high - s) for (low, high), s in zip(inside, start, strict=True))
    view[(slice(None), *target)] = crop
    return view


def common_voxels(
    body: NdarrayOrTensor,
    start_1: Sequence[int],
    start_2: Sequence[int],
    crop_size: Sequence[int],
    max_voxels: int,
    generator: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to `max_voxels` distinct voxels of `body` (1, H, W, D) in both crops, drawn uniformly without replacement.

    Returns:
        their positions in crop 1 and in crop 2, int64 (max_voxels, 3), with rows of -1 beyond the available number.
    """
    array = as_array(body)[0]
    starts = np.array([start_1, start_2])
    low = np.maximum(starts.max(0), 0)
    high = np.minimum(starts.min(0) + np.array(crop_size), array.shape)
    size = np.maximum(high - low, 0)
    inside = np.flatnonzero(array[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))])
    number = min(len(inside), max_voxels)
    chosen = inside[generator.choice(len(inside), number, replace=False, shuffle=False)] if number else inside
    voxels = np.full((2, max_voxels, 3), -1, dtype=np.int64)
    voxels[:, :number] = np.stack(np.unravel_index(chosen, size), 1) + (low - starts)[:, None]
    return torch.from_numpy(voxels[0]), torch.from_numpy(voxels[1])


def cut_frame(image: NdarrayOrTensor, frame: Frame, pad_value: float = 0.0) -> torch.Tensor:
    """`image` (C, H, W, D) on the grid of `frame`, interpolated, float32 (C, *frame.size); otherwise as `cut_view`."""
    low, size = frame.bounds()
    return interpolate(cut_view(image, low, size, pad_value), low, frame)


class OverlappingViews(Randomizable, Transform):
    """Pairs of random crops around a common body voxel, and the body voxels that both crops hold (vox2vec, section 2).

    The anchor is uniform over the body's voxels. Each crop's start is uniform among those that contain the anchor and
    stay inside the volume; along an axis shorter than the crop the volume is placed at random and padded, and padding
    never yields a voxel. The image and the body may be memory maps of any dtype: only the crops are read.

    With `rotate_range` or `scale_range` each view is also turned and scaled about its centre, on its own, by trilinear
    interpolation (not in the paper, whose views are crops). A common voxel is then a voxel of view 1 and the nearest
    one to it in view 2; two views that are turned apart may, rarely, have none.

    Args:
        crop_size: size of a view in voxels.
        max_voxels: number of rows of the positions.
        num_pairs: pairs a call.
        pad_value: value outside the volume, in the image's unit.
        rotate_range: largest angle about each axis, in radians.
        scale_range: each axis is scaled by a factor within 1 +- this.
        spacing: size of a voxel in mm, for the rotation.

    Call it on an image (C, H, W, D) and its body mask (1, H, W, D), not 0 in the body; it returns `num_pairs`
    `ViewPair`s of plain, contiguous tensors.

    Raises:
        InputError: (a ValueError) the body mask is empty.
        ValueError: the body mask does not fit the image, or a setting is not positive.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        max_voxels: int = 1024,
        num_pairs: int = 1,
        pad_value: float = 0.0,
        rotate_range: float = 0.0,
        scale_range: float = 0.0,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        self.crop_size = tuple(int(side) for side in crop_size)
        if len(self.crop_size) != 3 or min(*self.crop_size, max_voxels, num_pairs) < 1:
            raise ValueError(
                "crop_size must be three positive numbers, max_voxels and num_pairs positive, "
                f"but they are {self.crop_size}, {max_voxels}, {num_pairs}"
            )
        self.max_voxels = max_voxels
        self.num_pairs = num_pairs
        if rotate_range < 0 or not 0 <= scale_range < 1:
            raise ValueError(
                "rotate_range must not be negative and scale_range in [0, 1), "
                f"but they are {rotate_range}, {scale_range}"
            )
        self.pad_value = pad_value
        self.rotate_range = rotate_range
        self.scale_range = scale_range
        self.spacing = tuple(spacing)
        self.pairs: list[tuple[tuple[int, ...], tuple[int, ...], int]] = []
        self.matrices: list[tuple[np.ndarray, np.ndarray]] = []

    def randomize(self, body: np.ndarray) -> None:  # type: ignore[override]
        """Draw for each pair the two crops' starts, a seed for the choice of voxels and, if views are turned or scaled,
        their matrices; none where `body` (H, W, D) is empty."""
        self.pairs, self.matrices = [], []
        for _ in range(self.num_pairs):
            anchor = random_body_voxel(body, self.R)
            if anchor is None:
                return
            ranges = [crop_start_range(*axis) for axis in zip(anchor, body.shape, self.crop_size, strict=True)]
            start_1, start_2 = (tuple(int(self.R.randint(a, b + 1)) for a, b in ranges) for _ in range(2))
            self.pairs.append((start_1, start_2, int(self.R.randint(2**31))))
            if self.rotate_range or self.scale_range:
                settings = (self.rotate_range, self.scale_range, self.spacing, self.R)
                self.matrices.append((random_matrix(*settings), random_matrix(*settings)))

    def __call__(  # type: ignore[override]
        self, image: NdarrayOrTensor, body: NdarrayOrTensor, name: Any = None
    ) -> list[ViewPair]:
        """Cut the pairs of views; `name` is used in messages instead of the name of the image's file."""
        if image.ndim != 4 or tuple(body.shape) != (1, *image.shape[1:]):
            raise ValueError(
                f"{scan_name(image, name)}: expected an image (C, H, W, D) with a body mask (1, H, W, D) "
                f"but their shapes are {tuple(image.shape)} and {tuple(body.shape)}"
            )
        self.randomize(as_array(body)[0])
        if not self.pairs:
            raise InputError(
                f"{scan_name(image, name)}: the body mask is empty, so there is no voxel to cut views around; "
                "check the scan and the settings of its body mask"
            )
        if self.matrices:
            return [self._turned(image, body, *drawn) for drawn in zip(self.pairs, self.matrices, strict=True)]
        return [self._cut(image, body, *drawn) for drawn in self.pairs]

    def _cut(
        self,
        image: NdarrayOrTensor,
        body: NdarrayOrTensor,
        start_1: tuple[int, ...],
        start_2: tuple[int, ...],
        voxel_seed: int,
    ) -> ViewPair:
        """The pair of crops at two starts."""
        generator = np.random.default_rng(voxel_seed)
        voxels_1, voxels_2 = common_voxels(body, start_1, start_2, self.crop_size, self.max_voxels, generator)
        view_1, view_2 = (cut_view(image, start, self.crop_size, self.pad_value) for start in (start_1, start_2))
        return ViewPair(view_1, view_2, voxels_1, voxels_2, (voxels_1 + torch.tensor(start_1)).float())

    def _turned(
        self,
        image: NdarrayOrTensor,
        body: NdarrayOrTensor,
        pair: tuple[tuple[int, ...], tuple[int, ...], int],
        matrices: tuple[np.ndarray, np.ndarray],
    ) -> ViewPair:
        """The pair of views about the centres of the drawn crops, each turned and scaled by its matrix."""
        half = (np.array(self.crop_size) - 1) / 2
        frame_1, frame_2 = (Frame(self.crop_size, start + half, matrix) for start, matrix in zip(pair[:2], matrices))
        generator = np.random.default_rng(pair[2])
        voxels_1, voxels_2 = shared_voxels(as_array(body)[0], frame_1, frame_2, self.max_voxels, generator)
        view_1, view_2 = (cut_frame(image, frame, self.pad_value) for frame in (frame_1, frame_2))
        positions = torch.from_numpy(frame_1.in_scan(voxels_1.numpy())).float()
        return ViewPair(view_1, view_2, voxels_1, voxels_2, positions)


class OverlappingViewsd(Randomizable, MapTransform):
    """Dictionary form of `OverlappingViews`: one item becomes a list of `num_pairs` items.

    Each item holds `view_1`, `view_2`, `voxels_1`, `voxels_2`, `positions` and, where the input has them, `pass_keys`;
    nothing else.

    Args:
        keys: the image (C, H, W, D), one key.
        body_key: its body mask (1, H, W, D).
        crop_size, max_voxels, num_pairs, pad_value, rotate_range, scale_range, spacing: as in `OverlappingViews`.
        pass_keys: entries to hand on; the first one that is present names the scan in messages.
        allow_missing_keys: return an empty list where the image is absent.

    Raises:
        ValueError, InputError: more than one key, and as `OverlappingViews`.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        body_key: Hashable = "body",
        crop_size: Sequence[int] = (128, 128, 32),
        max_voxels: int = 1024,
        num_pairs: int = 1,
        pass_keys: Sequence[Hashable] = ("case", "scan"),
        pad_value: float = 0.0,
        allow_missing_keys: bool = False,
        rotate_range: float = 0.0,
        scale_range: float = 0.0,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"OverlappingViewsd cuts views of one image but got the keys {self.keys}")
        self.body_key = body_key
        self.pass_keys = tuple(pass_keys)
        self.views = OverlappingViews(crop_size, max_voxels, num_pairs, pad_value, rotate_range, scale_range, spacing)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> OverlappingViewsd:
        super().set_random_state(seed, state)
        self.views.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:  # type: ignore[override]
        passed = {key: data[key] for key in self.pass_keys if key in data}
        pairs: list[ViewPair] = []
        for key in self.key_iterator(dict(data)):
            pairs += self.views(data[key], data[self.body_key], name=next(iter(passed.values()), None))
        return [dict(pair._asdict()) | passed for pair in pairs]
