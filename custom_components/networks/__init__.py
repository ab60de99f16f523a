"""Backbone, heads, pre-training and segmentation networks, and their weights."""

from .export import export_onnx
from .folding import FastNetworks, fast_network, fold_batch_norm
from .fpn import FPN3d, ResidualBlock, features_at
from .heads import LinearHead, NonLinearHead
from .openvino_network import OpenVINONetwork
from .pretraining import BalancedProjection, DenseSSLNetwork, Projector
from .segmentation import SegmentationNetwork
from .weight_files import (
    WeightsError,
    provenance_path,
    read_checkpoint,
    read_record,
    read_weights,
    recorded_classes,
    save_checkpoint,
    save_weights,
    weights_digest,
)
from .weights import (
    adapt_in_channels,
    continue_pretraining,
    import_backbone,
    infer_architecture,
    load_backbone,
    load_pretrained_backbone,
    load_weights,
)

__all__ = [
    "BalancedProjection",
    "DenseSSLNetwork",
    "FPN3d",
    "FastNetworks",
    "LinearHead",
    "NonLinearHead",
    "OpenVINONetwork",
    "Projector",
    "ResidualBlock",
    "SegmentationNetwork",
    "WeightsError",
    "adapt_in_channels",
    "continue_pretraining",
    "export_onnx",
    "fast_network",
    "features_at",
    "fold_batch_norm",
    "import_backbone",
    "infer_architecture",
    "load_backbone",
    "load_pretrained_backbone",
    "load_weights",
    "provenance_path",
    "read_checkpoint",
    "read_record",
    "read_weights",
    "recorded_classes",
    "save_checkpoint",
    "save_weights",
    "weights_digest",
]
