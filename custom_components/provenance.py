"""Where weights come from: what is written beside every weight file that a training makes."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import monai
import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
# an absolute path: all between two quotes, or up to a space; no / inside a relative path or an address
START = r"(?:/|[A-Za-z]:[\\/]|\\\\|file://)"
ABSOLUTE = re.compile(rf"(?<='){START}[^']*(?=')|(?<=\"){START}[^\"]*(?=\")|(?<![^\s'\",\[(=]){START}[^\s'\",\])]*")

# '--option=/a path with spaces'
OPTION = re.compile(rf"(?P<before>(?P<quote>['\"])--?[^\s'\"=]+=)(?P<path>{START}(?:(?!(?P=quote)).)*)(?=(?P=quote))")


def training_record(commit: str | None, steps: int, seconds: float, device: torch.device | str) -> dict[str, Any]:
    """Command, commit, steps, time, processes and machine of a training that has just ended."""
    gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    return {
        "command": running_command(),
        "commit": commit,
        "steps": steps,
        "minutes": round(seconds / 60, 1),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processes": num_processes(),
        "machine": gpu or f"{torch.get_num_threads()} CPU threads ({platform.machine()})",
        "torch": torch.__version__,
        "monai": monai.__version__,
    }


def running_command() -> str:
    """The command that runs now, such as `python -m monai.bundle ...`, or `torchrun ...` for several processes."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = [sys.argv[0]] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    launcher = ["python"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = ["torchrun", f"--nproc_per_node={os.environ.get('LOCAL_WORLD_SIZE', 1)}"]
        if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
            launcher.append(f"--nnodes={os.environ['GROUP_WORLD_SIZE']}")
    return shell_command([*launcher, *program, *sys.argv[1:]])


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def shell_command(arguments: Iterable[str]) -> str:
    """As `shlex.join`, but what has single quotes of its own, such as a list of files, comes in double quotes."""
    simple = (f'"{a}"' if "'" in a and not set(a) & set('"$`!\\') else shlex.quote(a) for a in arguments)
    return " ".join(simple)


def absolute_paths(text: str) -> list[str]:
    """The absolute paths in a command or a list of folders: places of one machine, which may name people."""
    quoted = [match["path"] for match in OPTION.finditer(text)]
    return quoted + ABSOLUTE.findall(OPTION.sub(lambda match: match["before"], text))


def without_places(value: Any) -> Any:
    """Text, or a list of texts, with every absolute path as seen from the checkout, or cut to its last part.

    What is no text, such as None, stays as it is.
    """
    if isinstance(value, (list, tuple)):
        return [without_places(part) for part in value]
    if not isinstance(value, str):
        return value
    if re.match(START, value):  # no command, but a folder, whose name may have spaces, or several
        return ",".join(_portable(path) for path in value.split(","))
    value = OPTION.sub(lambda match: match["before"] + _portable(match["path"]), value)
    return ABSOLUTE.sub(lambda match: _portable(match[0]), value)


def _portable(path: str) -> str:
    try:
        return Path(path).relative_to(ROOT).as_posix()
    except ValueError:
        return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or "."


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
