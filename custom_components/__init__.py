"""Self-supervised dense hierarchical representations for MONAI: the Python that the bundles' configs wire together."""

import os

# PyTorch reads it when it allocates its first tensor. A CPU otherwise spends up to half of the time of a large volume
# on mapping memory page by page.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from .networks import load_backbone  # noqa: E402
from .version import __version__

__all__ = ["__version__", "load_backbone"]
