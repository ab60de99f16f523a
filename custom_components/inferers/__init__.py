"""Inference on whole scans: in one piece where the memory allows it, else in few large tiles."""

from .memory import free_memory
from .tiles import TiledInferer, choose_tile

__all__ = ["TiledInferer", "choose_tile", "free_memory"]
