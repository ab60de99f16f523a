"""Linear probing in seconds: a frozen backbone's feature vectors at sampled voxels, and the head that fits them."""

from .linear import fit_linear_head
from .probe import LinearProbe
from .vectors import VoxelVectors, sample_voxels, vectors_at

__all__ = ["LinearProbe", "VoxelVectors", "fit_linear_head", "sample_voxels", "vectors_at"]
