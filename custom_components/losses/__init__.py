"""Losses of pre-training and of segmentation."""

from .contrastive import InfoNCE
from .hybrid import HybridLoss
from .segmentation import PartialLabelLoss

__all__ = ["HybridLoss", "InfoNCE", "PartialLabelLoss"]
