"""How time and memory grow: of inference with the size of a scan, of the input pipeline with the number of scans."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose

from custom_components.data import MemoryMappedDataset

from . import infer
from .pipeline import our_dataset, scan_size
from .scans import write_scan
from .settings import Row, Settings
from .timing import peak_memory, seconds_of

REFERENCE_SIDE = 256  # the reference is not run on larger scans, where it takes hours
WARM_UP_SIDE = 128  # larger ones take so long that the first call is as good as the second
PAIRS, QUICK_PAIRS = 200, 20


def pairs_of(settings: Settings) -> int:
    """How many pairs are read."""
    return QUICK_PAIRS if settings.quick else PAIRS


def many_scans(settings: Settings, scan: Path, cache_dir: Path, number: int) -> MemoryMappedDataset:
    """A dataset of `number` scans whose files, in the data folder and in the cache, are hard links to one scan's."""
    _, crop_size = scan_size(settings)
    first = our_dataset(scan, cache_dir, crop_size, augmented=True, pairs=1)
    prepared = first.item_folder(first.data[0])
    items = []
    for index in range(number):
        link = scan.with_name(f"{index}_{scan.name}")
        if not link.exists():
            os.link(scan, link)
        items.append({"image": str(link), "case": f"phantom_{index}", "scan": index})
        folder = first.item_folder(items[-1])
        if not folder.exists():
            folder.mkdir()
            for file in prepared.iterdir():
                os.link(file, folder / file.name)
    return MemoryMappedDataset(items, Compose(first.transform.transforms), cache_dir, progress=False)


def read_pairs(settings: Settings, scan: Path, cache_dir: Path, number: int) -> Callable[[], Any]:
    """The call that is measured: pairs from one scan after the other, none of which is kept."""
    dataset = many_scans(settings, scan, cache_dir, number)
    order = torch.randint(number, (pairs_of(settings),), generator=torch.Generator().manual_seed(0)).tolist()

    def call() -> None:
        for index in order:
            dataset[index]

    return call


def run(settings: Settings) -> Iterator[Row]:
    """Time and peak memory of each size."""
    for side in (48,) if settings.quick else (64, 128, 256, 512):
        shape, size = (side,) * 3, f"{side}^3 voxels"
        kinds = ("ours", "reference") if side <= REFERENCE_SIDE else ("ours",)
        settings.apply()
        times = [_seconds(infer.volume_call(settings, kind, shape), side, settings) for kind in kinds]
        yield Row(f"growth/infer_time_{side}", times[0], times[1] if len(times) > 1 else None, "s", size, settings)
        memory = [peak_memory(infer.volume_call, kind, shape, settings=settings) for kind in kinds]
        yield Row(
            f"growth/infer_memory_{side}", memory[0], memory[1] if len(memory) > 1 else None, "MB", size, settings
        )
    settings = settings.one_core
    settings.apply()
    with tempfile.TemporaryDirectory() as folder:
        scan = write_scan(Path(folder) / "scan.nii.gz", scan_size(settings)[0], times=2)
        cache_dir = Path(folder) / "cache"
        for number in (1, 10) if settings.quick else (1, 10, 100, 1000):
            size = f"{number} scans, hard links to one"
            time_of_pair = seconds_of(read_pairs(settings, scan, cache_dir, number), "cpu") * 1e3 / pairs_of(settings)
            yield Row(f"growth/pipeline_time_{number}", time_of_pair, None, "ms", f"a pair, {size}", settings)
            memory_of_pairs = peak_memory(read_pairs, scan, cache_dir, number, settings=settings)
            yield Row(
                f"growth/pipeline_memory_{number}",
                memory_of_pairs,
                None,
                "MB",
                f"{pairs_of(settings)} pairs, {size}",
                settings,
            )


def _seconds(call: Callable[[], Any], side: int, settings: Settings) -> float:
    if side <= WARM_UP_SIDE:
        call()
    return seconds_of(call, settings.device)
