"""Released bundles by name: a checkout's own, those fetched before, or fetched now."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from filelock import FileLock  # PyTorch depends on it

from custom_components.errors import InputError

from .archives import unzip_bundle
from .names import choose_release, split_name
from .sources import SourceError, find_source
from .transfer import Unreachable, file_digest

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """Where fetched bundles are kept: $DENSE_SSL_CACHE, else `~/.cache/dense_ssl`."""
    return Path(os.environ.get("DENSE_SSL_CACHE") or "~/.cache/dense_ssl").expanduser()


def download_bundle(
    name: str,
    version: str | None = None,
    source: str | None = None,
    output_dir: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Fetch a release, check it, and unzip it as `NAME_vVERSION`; versions lie side by side.

    The archive is kept in the cache. A version that is there is not asked for again; without `version`, the newest of
    the source is taken, or, where no source can be reached, the newest of the cache.

    Args:
        name: `NAME`, or `NAME_vVERSION`.
        source: as for `find_source`.
        output_dir: where the folder goes, if not into the cache. A folder of that name there stays as it is.

    Returns:
        The bundle's folder.

    Raises:
        InputError: no source, none that answers, no such bundle, a wrong hash, an archive that is not to be unzipped.
    """
    name, version = split_name(name, version)
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):
        archive = (_cached_archive(name, version) if version else None) or _fetch(name, version, source, progress)
        target = Path(output_dir if output_dir is not None else cache) / archive.stem
        return unzip_bundle(archive, name, target)


def bundle_folder(name: str) -> Path:
    """The folder of a bundle with weights: the checkout's `bundles/NAME`, the newest in the cache, or downloaded now.

    Args:
        name: `NAME`, or `NAME_vVERSION`, which the checkout is not asked for.

    Raises:
        InputError: as `download_bundle`.
    """
    plain, version = split_name(name)
    own = ROOT / "bundles" / plain
    if version is None and (own / "models" / "model.pt").is_file():
        return own
    cache = cache_dir()
    found = choose_release([path.name for path in cache.glob("*_v*") if path.is_dir()], plain, version)
    if found is not None:
        return cache / found
    try:
        return download_bundle(name)
    except SourceError as error:
        raise SourceError(
            f"{name}: no file and no folder of that name, and no such bundle in {cache}; {error}"
        ) from error


def _record(archive: Path) -> Path:
    """The file beside an archive that keeps the hash it came with."""
    return archive.with_name(archive.name + ".sha256")


def _cached_archive(name: str, version: str | None) -> Path | None:
    """The archive of that version, or the newest, in the cache; None where there is none that is whole."""
    found = choose_release([path.stem for path in cache_dir().glob("*.zip")], name, version)
    if found is None:
        return None
    archive = cache_dir() / f"{found}.zip"
    record = _record(archive)
    return archive if record.is_file() and record.read_text().split()[:1] == [file_digest(archive)] else None


def _fetch(name: str, version: str | None, source: str | None, progress: bool) -> Path:
    """The archive, from the source if it has another than the cache."""
    try:
        origin = find_source(source)
        sums = origin.checksums()
    except (SourceError, Unreachable) as error:
        cached = _cached_archive(name, version)
        # a source that was named but is wrong is a mistake, not a machine without a connection
        if cached is None or (source and isinstance(error, SourceError)):
            raise
        logger.warning("using %s from the cache: %s", cached.name, error)
        return cached
    releases = [file.removesuffix(".zip") for file in sums if file.endswith(".zip")]
    found = choose_release(releases, name, version)
    if found is None:
        wanted = f"{name} {version}" if version else name
        listed = ", ".join(sorted(releases)) or "no bundle"
        raise InputError(f"{origin.location}: has no bundle {wanted}; it has {listed}")
    archive, expected = cache_dir() / f"{found}.zip", sums[f"{found}.zip"]
    if not (archive.is_file() and file_digest(archive) == expected):
        origin.fetch(archive.name, archive, expected, progress)
        shutil.rmtree(cache_dir() / found, ignore_errors=True)  # was unzipped from an archive that is no more
    _record(archive).write_text(f"{expected}  {archive.name}\n")
    return archive
