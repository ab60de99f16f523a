"""Engines, and the preparation of their batches, where MONAI has none that fits."""

from .adam import FusedAdam
from .batches import prepare_partial_labels, prepare_views
from .folder import FolderInference
from .pretrainer import Pretrainer

__all__ = ["FolderInference", "FusedAdam", "Pretrainer", "prepare_partial_labels", "prepare_views"]
