"""A dataset that does its deterministic transforms once and reads their results from memory maps."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import MetaTensor, PersistentDataset
from monai.transforms import Transform
from tqdm import tqdm

from custom_components.errors import InputError

from .datalists import DataError

logger = logging.getLogger(__name__)

POSITION = "scan"  # index of an item in its list: another one where a scan was added
PARTIAL = "partial_"
# the code that prepares a scan: this folder, and the one with the transforms
CODE = [path for name in ("data", "transforms") for path in sorted((Path(__file__).parents[1] / name).glob("*.py"))]
ABANDONED_SECONDS = 24 * 3600  # age of what a process that was killed left half written


def describe(value: Any) -> Any:
    """What a transform is, as plain data: its class and settings without its random state; for the cache's key."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [describe(item) for item in value]
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return np.asarray(value).tolist()
    if isinstance(value, np.random.RandomState):
        return None
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, Transform):
        # MONAI's note whether it records the operations, which does not change their result
        settings = {key: item for key, item in vars(value).items() if key != "_tracing"}
        return [type(value).__qualname__, describe(settings)]
    # a class, function, enumeration or reader: its name, not its address in memory
    return getattr(value, "__qualname__", None) or f"{type(value).__qualname__}.{getattr(value, 'name', '')}"


@functools.cache
def _digest_of_code() -> str:
    digest = hashlib.sha256()
    for path in CODE:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _stamp(path: str) -> list[Any]:
    """What changes when a file does, or any file of a folder."""
    files = sorted(entry.path for entry in os.scandir(path) if entry.is_file()) if os.path.isdir(path) else [path]
    stats = [(file, os.stat(file)) for file in files]
    return [[os.path.realpath(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


class CacheError(InputError):
    """The prepared scans cannot be kept; no scan is at fault."""


class MemoryMappedDataset(PersistentDataset):
    """MONAI's `PersistentDataset`, stored as .npy files that are memory-mapped.

    The transforms up to the first random one run once an item; a training step then reads from disk only the crop that
    it cuts, never a whole volume. Every item is prepared when the dataset is made, with a progress bar, so that a
    damaged file is found before training starts, all of them in one message. An item's folder is complete or absent
    (written under another name, then renamed; where a file of it was removed it is made anew), and it is used only
    while the source files, the transforms and their code, and MONAI are those that made it. Where an item stands in the
    list (`scan`) does not matter.

    Args:
        data: items, such as those of `read_datalist`.
        transform: transforms, the deterministic ones first. They decide the dtype on disk (`CastToTyped`).
        cache_dir: folder for the arrays.
        progress: show a progress bar.

    Items are dictionaries; their tensors come back as `MetaTensor` (with affine) on a copy-on-write memory map.

    Raises:
        DataError: one line for each item whose deterministic transforms failed.
        CacheError: the arrays cannot be written, as where the disk is full; raised at the first.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Sequence[Callable] | Callable,
        cache_dir: str | Path,
        progress: bool = True,
    ) -> None:
        super().__init__(data=data, transform=transform, cache_dir=None)
        self.folder = Path(cache_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        fixed = [t for t in self.transform.transforms[: self.transform.get_index_of_first(_is_random)]]
        self._transform_key = json.dumps([describe(fixed), monai.__version__, _digest_of_code()], sort_keys=True)
        for partial in self.folder.glob(f"{PARTIAL}*"):
            with contextlib.suppress(FileNotFoundError):  # another process has just finished it
                if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(partial, ignore_errors=True)
        self.prepare(progress)

    def prepare(self, progress: bool = True) -> None:
        """Build what the cache lacks."""
        folders = [self.item_folder(item) for item in self.data]
        # the server of the scans is asked once, not at every step
        self._folders = {_name(item): folder for item, folder in zip(self.data, folders)}
        absent = [(place, item) for place, item in enumerate(self.data) if not _is_complete(folders[place])]
        # several processes share the work: each has an order of its own
        random.Random(f"{socket.gethostname()} {os.getpid()}").shuffle(absent)
        faults = {}
        for place, item in tqdm(absent, desc="preparing scans", disable=not progress or not absent, mininterval=1):
            if _is_complete(folders[place]):  # another process was first
                continue
            try:
                self._build(item, folders[place])
            except CacheError:
                raise
            except Exception as error:  # every fault of a file is reported, none of them hides another
                faults[place] = _sentence(item, error)
        if faults:
            raise DataError("\n".join(faults[place] for place in sorted(faults)))

    def item_folder(self, item: Mapping[str, Any]) -> Path:
        """Where the arrays of an item are, or will be."""
        item = {key: value for key, value in item.items() if key != POSITION}
        # the names of a case and of a patient are no paths, and the other files of its data set do not matter
        paths = [
            value for key, value in item.items() if isinstance(value, str) and key not in ("case", "patient", "folder")
        ]
        sources = [stamp for path in paths if os.path.exists(path) for stamp in _stamp(path)]
        # the same file, however a command names it
        item.update({key: os.path.realpath(item[key]) for key in ("image", "label", "folder") if key in item})
        key = json.dumps([describe(item), sources], sort_keys=True) + self._transform_key
        return self.folder / hashlib.sha256(key.encode()).hexdigest()[:32]

    def prepared(self, index: int) -> dict[str, Any]:
        """An item after its deterministic transforms, on its memory map, before any random one."""
        return self._cachecheck(self.data[index])

    def _build(self, item: Mapping[str, Any], folder: Path) -> None:
        result = self._pre_transform(deepcopy(dict(item)))
        if self.item_folder(item) != folder:
            raise DataError(f"{item.get('image', item)}: changed while it was prepared; start again when it is whole")
        try:
            self._write(result, folder)
        except OSError as error:
            raise CacheError(
                f"{self.folder}: prepared scans cannot be written ({error}); free space there, or give another "
                "--cache_dir"
            ) from error

    def _write(self, result: Mapping[str, Any], folder: Path) -> None:
        if folder.is_dir() and not _is_complete(folder):  # a part of it was removed
            shutil.rmtree(folder)
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.folder))
        try:
            record: dict[str, Any] = {"values": {}, "affine": {}, "bytes": {}}
            for key, value in result.items():
                if isinstance(value, (torch.Tensor, np.ndarray)):
                    np.save(partial / f"{key}.npy", np.asarray(value))
                    record["bytes"][key] = (partial / f"{key}.npy").stat().st_size
                    if isinstance(value, MetaTensor):
                        record["affine"][key] = np.asarray(value.affine, dtype=float).tolist()
                elif not key.endswith("_meta_dict"):
                    record["values"][key] = value
            (partial / "item.json").write_text(json.dumps(record))
            partial.chmod(0o755)
            try:
                partial.replace(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was first, with the same content
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _cachecheck(self, item_transformed: Mapping[str, Any]) -> dict[str, Any]:
        folder = self._folders.get(_name(item_transformed)) or self.item_folder(item_transformed)
        if not folder.is_dir():
            self._build(item_transformed, folder)
        record = json.loads((folder / "item.json").read_text())
        item = dict(record["values"])
        if POSITION in item_transformed:
            item[POSITION] = item_transformed[POSITION]
        for path in sorted(folder.glob("*.npy")):
            # copy-on-write: torch wants writable memory, the file must stay as it is
            tensor = torch.from_numpy(np.load(path, mmap_mode="c"))
            affine = record["affine"].get(path.stem)
            item[path.stem] = tensor if affine is None else MetaTensor(tensor, affine=torch.tensor(affine).double())
        return item


def _name(item: Mapping[str, Any]) -> str:
    """What tells an item from the others, without a look at its files."""
    return json.dumps(describe({key: value for key, value in item.items() if key != POSITION}), sort_keys=True)


def _is_complete(folder: Path) -> bool:
    """Whether every array is there in its size: what cleans a disk may have removed some."""
    try:
        sizes = json.loads((folder / "item.json").read_text())["bytes"]
        return all((folder / f"{key}.npy").stat().st_size == size for key, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _is_random(transform: Any) -> bool:
    return isinstance(transform, monai.transforms.RandomizableTrait) or not isinstance(transform, Transform)


def _sentence(item: Mapping[str, Any], error: Exception) -> str:
    """The innermost cause of a failed transform, with the item's file in front where it is not named yet."""
    while error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
    text = " ".join(str(error).split()) or type(error).__name__
    file = str(item.get("image", item))
    if os.path.basename(file) in text:
        return text
    return f"{file}: could not be prepared ({type(error).__name__}: {text[:300]}); check or remove the file"
