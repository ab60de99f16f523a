"""From a released bundle's name to its folder: sources, verified transfers, a cache."""

from .archives import ArchiveError, unzip_bundle
from .cache import bundle_folder, cache_dir, download_bundle
from .imports import require_copy
from .names import is_bundle_name, split_name, version_key
from .sources import DEFAULT_SOURCE, Source, SourceError, find_source
from .transfer import Unreachable, fetch_file, file_digest

__all__ = [
    "ArchiveError",
    "DEFAULT_SOURCE",
    "Source",
    "SourceError",
    "Unreachable",
    "bundle_folder",
    "cache_dir",
    "download_bundle",
    "fetch_file",
    "file_digest",
    "find_source",
    "is_bundle_name",
    "require_copy",
    "split_name",
    "unzip_bundle",
    "version_key",
]
