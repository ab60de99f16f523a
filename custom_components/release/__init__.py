"""Makes releases of bundles: checks what must hold, packs a bundle with its code, and tries what was packed."""

from .checks import check_bundle, check_network, try_inference
from .packing import pack_bundle, release_bundles, released_bundles, write_listings

__all__ = [
    "check_bundle",
    "check_network",
    "pack_bundle",
    "release_bundles",
    "released_bundles",
    "try_inference",
    "write_listings",
]
