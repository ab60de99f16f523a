"""Where weights come from: what is written beside every weight file that a training makes."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import monai
import torch


def training_record(commit: str | None, steps: int, seconds: float, device: torch.device | str) -> dict[str, Any]:
    """Command, commit, steps, time and machine of a training that has just ended."""
    gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    return {
        "command": shell_command(["python", "-m", "monai.bundle", *sys.argv[1:]]),
        "commit": commit,
        "steps": steps,
        "minutes": round(seconds / 60, 1),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": gpu or f"{torch.get_num_threads()} CPU threads ({platform.machine()})",
        "torch": torch.__version__,
        "monai": monai.__version__,
    }


def shell_command(arguments: Iterable[str]) -> str:
    """As `shlex.join`, but what has single quotes of its own, such as a list of files, comes in double quotes."""
    simple = (f'"{a}"' if "'" in a and not set(a) & set('"$`!\\') else shlex.quote(a) for a in arguments)
    return " ".join(simple)


def git_commit() -> str | None:
    """The commit of this package's checkout, marked where it has changes; None outside a checkout.

    A copy of the package inside another repository, such as an unzipped release or an environment, has none.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
