import os

import pytest

from custom_components.data import loader_workers


@pytest.mark.parametrize("cores, processes, expected", [(64, None, 8), (4, None, 4), (16, 4, 4), (2, 8, 1)])
def test_a_gpus_processes_share_the_cores(cores, processes, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert loader_workers("cuda:0") == expected
    assert loader_workers("cpu") == 0
