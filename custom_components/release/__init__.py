"""Makes releases of bundles: checks what must hold, packs a bundle with its code, tries it, and publishes it."""

from .adoption import adopt_weights
from .checks import check_bundle, check_network, try_inference
from .model_card import model_card
from .new_bundle import new_bundle
from .packing import pack_bundle, release_bundles, released_bundles, write_listings
from .publishing import Plan, Publication, build_publication, connect, plan_push, push_publication

__all__ = [
    "Plan",
    "Publication",
    "adopt_weights",
    "build_publication",
    "check_bundle",
    "check_network",
    "connect",
    "model_card",
    "new_bundle",
    "pack_bundle",
    "plan_push",
    "push_publication",
    "release_bundles",
    "released_bundles",
    "try_inference",
    "write_listings",
]
