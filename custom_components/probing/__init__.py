"""What a frozen backbone's features at sampled voxels are worth, in seconds: linear probing and label transfer."""

from .linear import fit_linear_head
from .probe import LinearProbe
from .transfer import LabelTransfer
from .vectors import VoxelVectors, sample_voxels, vectors_at

__all__ = ["LabelTransfer", "LinearProbe", "VoxelVectors", "fit_linear_head", "sample_voxels", "vectors_at"]
