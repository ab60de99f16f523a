"""From scans on the disk to pairs of views."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.transforms import Compose
from scipy import ndimage

from custom_components.data import MemoryMappedDataset
from custom_components.transforms.views import common_voxels, crop_start_range, cut_view

from .augment import Reference
from .scans import spacing_of, write_scan
from .settings import Row, Settings, bundle_config, require
from .timing import memory_beside, time_beside

PAIRS, MAX_VOXELS = 10, 1024


def scan_size(settings: Settings) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Shape of the scan and of the crops, in voxels."""
    return ((160, 160, 100), (64, 64, 32)) if settings.quick else ((400, 400, 250), (128, 128, 32))


def our_dataset(
    scan: Path, cache_dir: Path, crop_size: Sequence[int], augmented: bool, pairs: int = PAIRS
) -> MemoryMappedDataset:
    """What `ct_dense_ssl` trains on, of one scan, on the scan's own grid."""
    config = bundle_config(
        "ct_dense_ssl",
        "train",
        spacing=spacing_of(scan),
        crop_size=list(crop_size),
        pairs_per_scan=pairs,
        num_shuffled_blocks=5000,
    )
    steps = ["preparation", "views", *(["originals", "augmentation"] if augmented else []), "plain_tensors"]
    transform = Compose([step for name in steps for step in config.get_parsed_content(name)])
    transform.set_random_state(0)
    items = [{"image": str(scan), "case": "phantom", "scan": 0}]
    return MemoryMappedDataset(items, transform, cache_dir, progress=False)


def read_whole(scan: Path) -> np.ndarray:
    """All voxels, float32 HU."""
    return np.asarray(nib.load(scan).dataobj, dtype=np.float32)  # type: ignore[attr-defined]


def scaled(image: np.ndarray) -> np.ndarray:
    """HU to [0, 1]."""
    return (image.clip(-175, 250) + 175) / np.float32(425)


def crop_at(start: Sequence[int], crop_size: Sequence[int]) -> tuple[slice, ...]:
    """The indices of a crop."""
    return tuple(slice(s, s + c) for s, c in zip(start, crop_size, strict=True))


def reference_body(image: np.ndarray) -> np.ndarray:
    """The body, by a flood of the air from the corner of the scan."""
    regions, _ = ndimage.label(image < -500)
    return regions != regions[0, 0, 0]


def reference_voxels(
    voxels: np.ndarray, start_1: Sequence[int], start_2: Sequence[int], crop_size: Sequence[int]
) -> np.ndarray:
    """Those of a list of voxels (K, 3) that are in both crops."""
    low, high = np.maximum(start_1, start_2), np.minimum(start_1, start_2) + np.array(crop_size)
    return voxels[((voxels >= low) & (voxels < high)).all(1)]


def reference_pairs(scan: Path, crop_size: Sequence[int], random: np.random.RandomState, augmented: bool) -> list[Any]:
    """A batch of pairs: the whole scan is read, its body is found and all its voxels are listed."""
    image = read_whole(scan)
    voxels = np.argwhere(reference_body(image))
    image = scaled(image)
    augment = Reference(crop_size, 5000)
    pairs = []
    for _ in range(PAIRS):
        anchor = voxels[random.randint(len(voxels))]
        ranges = [crop_start_range(*axis) for axis in zip(anchor, image.shape, crop_size, strict=True)]
        start_1, start_2 = ([random.randint(low, high + 1) for low, high in ranges] for _ in range(2))
        common = reference_voxels(voxels, start_1, start_2, crop_size)
        chosen = common[random.permutation(len(common))[:MAX_VOXELS]]
        views = [image[crop_at(start, crop_size)].copy() for start in (start_1, start_2)]
        if augmented:
            views = [augment.local(view) for view in views]
        pairs.append((*views, chosen - start_1, chosen - start_2))
    return pairs


def batch_call(
    settings: Settings, kind: str, scan: Path, cache_dir: Path, crop_size: Sequence[int], augmented: bool
) -> Callable[[], Any]:
    """The call that is measured: one batch of pairs."""
    if kind == "ours":
        dataset = our_dataset(scan, cache_dir, crop_size, augmented)
        return lambda: dataset[0]
    random = np.random.RandomState(0)
    return lambda: reference_pairs(scan, crop_size, random, augmented)


def check_equal(scan: Path, cache_dir: Path, crop_size: Sequence[int]) -> None:
    """For the same body and crops, ours gives the same views (as float16 stores them) and the same common voxels."""
    dataset = our_dataset(scan, cache_dir, crop_size, augmented=False)
    item = dataset._cachecheck(dataset.data[0])
    body, image = np.asarray(item["body"]), read_whole(scan)
    start_1 = [(n - c) // 2 for n, c in zip(image.shape, crop_size, strict=True)]
    start_2 = [start + 3 for start in start_1]
    expected = scaled(image[crop_at(start_1, crop_size)])
    difference = np.abs(cut_view(item["image"], start_1, crop_size)[0].numpy() - expected).max()
    require(bool(difference < 1e-3), f"a view differs from the reference's by {difference}")
    voxels = reference_voxels(np.argwhere(body[0]), start_1, start_2, crop_size) - start_1
    ours, _ = common_voxels(body, start_1, start_2, crop_size, int(np.prod(crop_size)), np.random.default_rng(0))
    ours = ours[ours[:, 0] >= 0]
    require({*map(tuple, ours.tolist())} == {*map(tuple, voxels.tolist())}, "the common voxels differ")


def run(settings: Settings) -> Iterator[Row]:
    """Time of a pair on one core, with and without augmentation, and memory of a batch; the cache is made before."""
    settings = settings.one_core
    shape, crop_size = scan_size(settings)
    size = "{} x {} x {} of a scan of {} x {} x {}".format(*crop_size, *shape)
    with tempfile.TemporaryDirectory() as folder:
        scan = write_scan(Path(folder) / "scan.nii.gz", shape, times=2)
        cache_dir = Path(folder) / "cache"
        check_equal(scan, cache_dir, crop_size)
        for name, augmented in (("pairs", False), ("augmented_pairs", True)):
            arguments = (scan, cache_dir, crop_size, augmented)
            yield time_beside(
                f"pipeline/{name}",
                (batch_call(settings, "ours", *arguments), batch_call(settings, "reference", *arguments)),
                settings,
                f"a pair, {PAIRS} a scan, {size}",
                repeats=5 if settings.quick else 20,
                reference_repeats=1 if settings.quick else 3,
                unit="ms",
                divide_by=PAIRS,
            )
        arguments = (scan, cache_dir, crop_size, False)
        kinds = [(kind, *arguments) for kind in ("ours", "reference")]
        yield memory_beside("pipeline/memory", batch_call, kinds, settings, f"{PAIRS} pairs, {size}")
