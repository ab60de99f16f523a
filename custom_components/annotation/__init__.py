"""Few-label training for annotators: what MONAI Label asks of a segmentation bundle's `train.json`."""

from .panel import PanelOptions
from .requests import annotated_class_names, is_annotator_data
from .start import released_head, start_network

__all__ = ["PanelOptions", "annotated_class_names", "is_annotator_data", "released_head", "start_network"]
