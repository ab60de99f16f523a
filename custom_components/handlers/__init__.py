"""Event handlers that MONAI and ignite have none of."""

from .checkpoints import BestWeights, LastCheckpoint, ReleaseWeights
from .optimisation import FreezeBackbone, GradientClipping
from .pictures import OverlayPictures, ViewPictures
from .validation import EarlyValidation

__all__ = [
    "BestWeights",
    "EarlyValidation",
    "FreezeBackbone",
    "GradientClipping",
    "LastCheckpoint",
    "OverlayPictures",
    "ReleaseWeights",
    "ViewPictures",
]
