"""Inference on whole scans, in one piece where the memory allows it, else in few large tiles; precision on CPUs."""

from .memory import free_memory
from .precision import AutocastInferer, has_native_bfloat16
from .tiles import TiledInferer, choose_tile

__all__ = ["AutocastInferer", "TiledInferer", "choose_tile", "free_memory", "has_native_bfloat16"]
