"""Time and peak memory of a call."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .settings import Row, Settings

Call = Callable[[], Any]
SECONDS_A_TURN = 0.05
MODULES = [f"{__package__}.{name}" for name in ("infer", "loss", "pipeline", "train")]


def seconds_of(call: Call, device: str, number: int = 1) -> float:
    """Wall-clock time of a call, the mean of `number` calls in a row, until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(number):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / number


def time_beside(
    name: str,
    calls: tuple[Call, Call],
    settings: Settings,
    size: str,
    *,
    repeats: int,
    reference_repeats: int | None = None,
    unit: str = "s",
    divide_by: float = 1,
) -> Row:
    """Median and interquartile range of ours and of the reference, `calls`.

    They take turns, so that a busy machine disturbs both alike. A turn is as many calls in a row as take
    `SECONDS_A_TURN`, at least one, so that neither pays for what the other left in the caches. Both are called once
    before, to warm up. A figure is the time of a call, in `unit` ("s" or "ms"), over `divide_by`.
    """
    settings.apply()
    factor = {"s": 1.0, "ms": 1e3}[unit] / divide_by
    turns = (repeats, repeats if reference_repeats is None else reference_repeats)
    numbers = []
    for call in calls:
        call()
        numbers.append(max(1, round(SECONDS_A_TURN / seconds_of(call, settings.device))) if max(turns) > 1 else 1)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(max(turns)):
        for index, call in enumerate(calls):
            if turn < turns[index]:
                times[index].append(seconds_of(call, settings.device, numbers[index]) * factor)
    (ours, ours_spread), (reference, reference_spread) = (_median_and_spread(found) for found in times)
    return Row(name, ours, reference, unit, size, settings, ours_spread, reference_spread)


def time_alone(name: str, call: Call, settings: Settings, size: str, *, repeats: int) -> Row:
    """Median and interquartile range in seconds of a long call that has no reference, after one to warm up."""
    settings.apply()
    call()
    median, spread = _median_and_spread([seconds_of(call, settings.device) for _ in range(repeats)])
    return Row(name, median, None, "s", size, settings, spread)


def _median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.median(values)), float(np.subtract(*np.percentile(values, [75, 25])))


def memory_beside(
    name: str, prepare: Callable[..., Call], arguments: Sequence[Sequence[Any]], settings: Settings, size: str
) -> Row:
    """`peak_memory` of ours and of the reference, for which `prepare` gets the first and the second `arguments`."""
    ours, reference = (peak_memory(prepare, *each, settings=settings) for each in arguments)
    return Row(name, ours, reference, "MB", size, settings)


def peak_memory(prepare: Callable[..., Call], *arguments: Any, settings: Settings) -> float:
    """Memory in MB that a call needs on top of what was there before it, at its highest.

    Args:
        prepare: a function of a module; `prepare(settings, *arguments)` makes the inputs and returns the call.

    On a CPU it runs in a fresh process, so that no earlier measurement is in the figure; on a GPU the memory that
    PyTorch allocated is counted.

    Raises:
        RuntimeError: the process died, for instance because the machine has too little memory.
    """
    if settings.device == "cuda":
        call = prepare(settings, *arguments)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # a server that has imported everything and computed nothing is forked: as fresh as a new interpreter, in no time
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, prepare, settings, arguments))
    process.start()
    sender.close()
    try:
        peak = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"benchmark: {prepare.__qualname__}{arguments} stopped with status {process.exitcode}; "
            "its messages are above, or it needs more memory than the machine has (try --quick)"
        ) from None
    process.join()
    return peak / 1e6


def _measure_peak(sender: Connection, prepare: Callable[..., Call], settings: Settings, arguments: tuple) -> None:
    settings.apply()
    call = prepare(settings, *arguments)
    before = _reset_peak()
    call()
    sender.send(_peak_bytes() - before)


def _reset_peak() -> int:
    """Forget the peak so far, where the system can; returns the memory in use, in bytes."""
    statm, clear = Path("/proc/self/statm"), Path("/proc/self/clear_refs")
    if statm.exists() and clear.exists():
        clear.write_text("5")
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return _peak_bytes()


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
