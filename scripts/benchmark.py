"""What the tools cost beside a slow, obvious reference, on this machine; docs/BENCHMARK.md says what each figure is.

python -m scripts.benchmark --quick --json out/benchmark.json
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fire
import torch

from custom_components.errors import InputError
from scripts.benchmarks import augment, growth, infer, loss, pipeline, train
from scripts.benchmarks.machine import describe_machine
from scripts.benchmarks.settings import Row, Settings

SECTIONS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "augment": augment.run,
    "pipeline": pipeline.run,
    "loss": loss.run,
    "train": train.run,
    "infer": infer.run,
    "growth": growth.run,
}
DEFAULT = ("augment", "pipeline", "loss", "train", "infer")


def benchmark(
    *sections: str,
    quick: bool = False,
    json: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> None:
    """Measure and print a table.

    Args:
        sections: of augment, pipeline, loss, train and infer (all of them without a name), and growth.
        quick: small sizes and few repeats; at most 90 seconds.
        json: file for the rows, a list of {"name", "ours", "reference", "unit", "ratio", ...}, with ratio = reference
            over ours.
        device: cpu or cuda; cuda where there is one. What only a CPU does is measured on one core of it.
        threads: CPU threads for the rest; all cores.
    """
    wanted = [str(section) for section in sections] or list(DEFAULT)
    unknown = [section for section in wanted if section not in SECTIONS]
    if unknown:
        raise InputError(f"{unknown[0]}: is no section; the sections are {', '.join(SECTIONS)}")
    if not isinstance(quick, bool):
        raise InputError(f"quick: takes no value but got {quick}; name the sections before it")
    if isinstance(json, bool):
        raise InputError("json: needs the name of a file; write --json out/benchmark.json")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise InputError(f"device: must be cpu or cuda but is {device}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: this machine has no GPU that PyTorch can use; use cpu")
    settings = Settings(device, threads or os.cpu_count() or 1, quick)
    settings.apply()
    machine = describe_machine(settings)
    print(machine)
    print(f"{'':<30}{'ours':>12}{'reference':>12}      {'ratio':>8}  size")
    rows = []
    for section in wanted:
        for row in SECTIONS[section](settings):
            rows.append(row.as_dict() | {"machine": machine})
            print(_line(row), flush=True)
            if json is not None:  # at once: what is measured is kept if a later section fails
                _write(Path(str(json)), rows)


def _line(row: Row) -> str:
    reference = "" if row.reference is None else f"{row.reference:.4g}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    spread = "" if row.ours_spread is None else f" (quartiles {row.ours_spread:.2g} apart)"
    return f"{row.name:<30}{row.ours:>12.4g}{reference:>12} {row.unit:<4} {ratio:>8}  {row.size}{spread}"


def _write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        fire.Fire(benchmark)
    except InputError as error:
        sys.exit(f"error: {error}")
