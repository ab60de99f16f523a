"""How many processes load data."""

from __future__ import annotations

import os

import torch


def loader_workers(device: torch.device | str, most: int = 8) -> int:
    """Worker processes for a data loader: none where the CPU trains, and needs its cores itself.

    Beside a GPU as many as this process's share of the cores that the system or batch job gives, from 1 to `most`;
    of several processes that `torchrun` started on a machine, each has an equal share.
    """
    if torch.device(device).type == "cpu":
        return 0
    given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(given // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1), most)
