"""Self-supervised dense hierarchical representations for MONAI: the Python that the bundles' configs wire together."""

from .networks import load_backbone
from .version import __version__

__all__ = ["__version__", "load_backbone"]
