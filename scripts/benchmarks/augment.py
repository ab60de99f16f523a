"""The local augmentations of one view: shuffled blocks, a Bezier curve, in-painted boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from custom_components.transforms import BatchAugmentation, RandBezierIntensity, RandInPaint, RandLocalShuffle
from custom_components.transforms.bezier import apply_table, bezier_table
from custom_components.transforms.inpaint import inpaint_boxes
from custom_components.transforms.shuffle import shuffle_blocks

from .settings import Row, Settings, require
from .timing import time_beside

SHAPE = (128, 128, 32)
CURVE_POINTS = 100_000


def reference_shuffle(
    image: np.ndarray, starts: np.ndarray, size: Sequence[int], permutations: np.ndarray
) -> np.ndarray:
    """One block after the other."""
    result = image.copy()
    for (x, y, z), order in zip(starts, permutations, strict=True):
        block = (slice(x, x + size[0]), slice(y, y + size[1]), slice(z, z + size[2]))
        result[block] = image[block].ravel()[order].reshape(size)
    return result


def reference_bezier(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A dense curve, and linear interpolation in it for every voxel."""
    t = np.linspace(0, 1, CURVE_POINTS)
    x, y = (3 * t * (1 - t) ** 2 * p + 3 * t**2 * (1 - t) * q + t**3 for p, q in points.T)
    return np.interp(image, x, y).astype(np.float32)


def reference_inpaint(
    image: np.ndarray, starts: np.ndarray, sizes: np.ndarray, random: np.random.RandomState
) -> np.ndarray:
    """One box after the other."""
    result = image.copy()
    for (x, y, z), (a, b, c) in zip(starts, sizes, strict=True):
        result[x : x + a, y : y + b, z : z + c] = random.random_sample((a, b, c))
    return result


class Reference:
    """The three augmentations of an image (H, W, D), with random parameters of the same distribution as ours."""

    def __init__(self, shape: Sequence[int], num_blocks: int) -> None:
        self.random = np.random.RandomState(0)
        self.shape, self.num_blocks = shape, num_blocks
        self.size = RandLocalShuffle().block_size(shape)
        self.boxes = RandInPaint()
        self.boxes.set_random_state(0)

    def shuffle(self, image: np.ndarray) -> np.ndarray:
        starts = np.stack(
            [self.random.randint(0, n - b + 1, self.num_blocks) for n, b in zip(self.shape, self.size, strict=True)], 1
        )
        volume = int(np.prod(self.size))
        return reference_shuffle(
            image, starts, self.size, np.stack([self.random.permutation(volume) for _ in range(self.num_blocks)])
        )

    def bezier(self, image: np.ndarray) -> np.ndarray:
        return reference_bezier(image, self.random.random_sample((2, 2)))

    def inpaint(self, image: np.ndarray) -> np.ndarray:
        starts, sizes = self.boxes.draw_boxes(self.shape)
        return reference_inpaint(image, starts.numpy(), sizes.numpy(), self.random)

    def local(self, image: np.ndarray) -> np.ndarray:
        return self.inpaint(self.bezier(self.shuffle(image)))


def check_equal(shape: Sequence[int]) -> None:
    """Ours and the reference's results are the same for the same parameters."""
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    plain = image[0].numpy()
    shuffle = RandLocalShuffle(prob=1.0)
    shuffle.set_random_state(0)
    shuffle.randomize(shape)
    size = shuffle.block_size(shape)
    expected = reference_shuffle(plain, shuffle.block_starts.numpy(), size, shuffle.permutations.numpy())
    ours = shuffle_blocks(image, shuffle.block_starts, size, shuffle.permutations)[0].numpy()
    require(np.array_equal(ours, expected), "shuffling differs from the reference")
    points = np.array([[0.2, 0.7], [0.6, 0.3]])
    mapped = apply_table(image, bezier_table(torch.from_numpy(points), RandBezierIntensity().num_points))[0].numpy()
    difference = np.abs(mapped - reference_bezier(plain, points)).max()
    require(difference < 1e-3, f"the curve differs from the reference by {difference}")
    boxes = RandInPaint()
    boxes.set_random_state(0)
    starts, sizes = boxes.draw_boxes(shape)
    # noise above 1 shows which voxels were filled
    filled = inpaint_boxes(image, starts, sizes, 0, (2.0, 3.0))[0].numpy() >= 2
    blank = reference_inpaint(np.full(shape, 9.0), starts.numpy(), sizes.numpy(), np.random.RandomState(0)) < 9
    require(np.array_equal(filled, blank), "in-painted voxels differ from the reference's")


def run(settings: Settings) -> Iterator[Row]:
    """Each augmentation, and all three, of one view on one core; of a batch of views on the device."""
    check_equal(SHAPE)
    repeats = 5 if settings.quick else 20
    image = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    plain = image[0].numpy()
    shuffle, bezier, inpaint = RandLocalShuffle(prob=1.0), RandBezierIntensity(prob=1.0), RandInPaint()
    for seed, transform in enumerate((shuffle, bezier, inpaint)):
        transform.set_random_state(seed)
    reference = Reference(SHAPE, shuffle.num_blocks)
    steps = {
        "shuffle": (lambda: shuffle(image), lambda: reference.shuffle(plain)),
        "bezier": (lambda: bezier(image), lambda: reference.bezier(plain)),
        "inpaint": (lambda: inpaint(image), lambda: reference.inpaint(plain)),
        "local": (lambda: inpaint(bezier(shuffle(image))), lambda: reference.local(plain)),
    }
    view = "view of {} x {} x {}".format(*SHAPE)
    for name, calls in steps.items():
        yield time_beside(f"augment/{name}", calls, settings.one_core, f"a {view}", repeats=repeats, unit="ms")
    number = 4 if settings.quick else 20
    batch = image.expand(number, -1, -1, -1, -1).contiguous().to(settings.device)
    augment = BatchAugmentation([shuffle, bezier, inpaint])
    yield time_beside(
        "augment/batch",
        (lambda: augment(batch), lambda: [reference.local(plain) for _ in range(number)]),
        settings if settings.device == "cuda" else settings.one_core,
        f"a {view}, {number} at once; reference one by one on the CPU",
        repeats=5 if settings.quick else 10,
        reference_repeats=1,
        unit="ms",
        divide_by=number,
    )
