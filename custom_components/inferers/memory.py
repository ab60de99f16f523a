"""How much memory a computation may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

UNKNOWN = 4 << 30  # where the system does not say: what any machine of today has
# of control groups: the tree, the limit, what is used, and what of it are files; both count the groups inside a group
VERSION_1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("", "memory.max", "memory.current", "inactive_file")


def free_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that can be allocated on `device` now.

    On a GPU: what is free, and what PyTorch holds without using it. Else what Linux calls available, within the limit
    of the container or batch job (control groups, versions 1 and 2); half of the memory on other systems.

    Args:
        root: where /proc and /sys are.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    available = _fields(root / "proc/meminfo").get("MemAvailable:")
    if available is not None:
        return min([available * 1024, *_left_in_groups(root)])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, others not these names
        return UNKNOWN


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group that this process is in leaves it, in bytes; files in memory that can be dropped count as
    free."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            tree, limit_file, used_file, droppable = VERSION_1
        elif not controllers:
            tree, limit_file, used_file, droppable = VERSION_2
        else:
            continue
        base = root / "sys/fs/cgroup" / tree
        folder = base / group.lstrip("/")
        for each in (folder, *folder.parents[: len(folder.parts) - len(base.parts)]):
            try:
                limit = int((each / limit_file).read_text())
                used = int((each / used_file).read_text())
            except (OSError, ValueError):  # no such file, or "max"
                continue
            yield max(0, limit - used + _fields(each / "memory.stat").get(droppable, 0))


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of lines `name number ...`; nothing where there is no such file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}
