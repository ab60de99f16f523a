"""Measures of segmentations and of representations."""

from .retrieval import VoxelRetrieval
from .segmentation import SegmentationScores, write_scores

__all__ = ["SegmentationScores", "VoxelRetrieval", "write_scores"]
