"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import monai
import numpy as np
import torch

from .settings import Settings


def describe_machine(settings: Settings) -> str:
    """Processor, memory, device, versions, and how busy the machine is, in one line."""
    parts = [f"{_processor()}, {os.cpu_count()} cores, {settings.threads} used"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB memory")
    if settings.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        parts.append(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    parts.append(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    parts.append(f"torch {torch.__version__}, MONAI {monai.__version__}, NumPy {np.__version__}")
    if hasattr(os, "getloadavg"):
        parts.append(f"load {os.getloadavg()[0]:.1f} at the start")
    return "; ".join(parts)


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (file.read_text() if file.exists() else "").splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()
