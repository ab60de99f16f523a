"""Measures of segmentations and of representations."""

from .retrieval import VoxelRetrieval
from .segmentation import SegmentationScores, mean_by_class, write_scores
from .tables import write_csv

__all__ = ["SegmentationScores", "VoxelRetrieval", "mean_by_class", "write_csv", "write_scores"]
