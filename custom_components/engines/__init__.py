"""Engines, and the preparation of their batches, where MONAI has none that fits."""

from .adam import FusedAdam
from .batches import prepare_partial_labels, prepare_views
from .evaluation import SoundScans
from .folder import FolderInference
from .pretrainer import Pretrainer

__all__ = ["FolderInference", "FusedAdam", "Pretrainer", "SoundScans", "prepare_partial_labels", "prepare_views"]
