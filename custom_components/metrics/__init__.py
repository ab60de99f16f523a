"""Measures of segmentations and of representations."""

from .retrieval import VoxelRetrieval
from .segmentation import SegmentationScores, mean_by_class, write_scores
from .tables import record_scores, scored_split, write_csv
from .unseen import seen_among, seen_scans, warn_of_seen

__all__ = [
    "SegmentationScores",
    "VoxelRetrieval",
    "mean_by_class",
    "record_scores",
    "scored_split",
    "seen_among",
    "seen_scans",
    "warn_of_seen",
    "write_csv",
    "write_scores",
]
