"""What a benchmark runs with, and what it reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        device: "cpu" or "cuda".
        threads: CPU threads of torch.
        quick: small sizes and few repeats, to see that everything runs.
    """

    device: str = "cpu"
    threads: int = 1
    quick: bool = False

    def apply(self) -> None:
        """Make this process use them."""
        torch.set_num_threads(self.threads)

    @property
    def one_core(self) -> Settings:
        """The same on one CPU core."""
        return replace(self, device="cpu", threads=1)


@dataclass(frozen=True)
class Row:
    """One figure beside its reference.

    Args:
        name: "section/figure".
        ours, reference: medians, or one value where nothing varies; less is better where there are both. None where it
            was not measured.
        unit: of both.
        size: what was measured.
        settings: with what.
        ours_spread, reference_spread: interquartile range of the repeats, in the same unit.
    """

    name: str
    ours: float
    reference: float | None
    unit: str
    size: str
    settings: Settings
    ours_spread: float | None = None
    reference_spread: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times the reference takes what ours does."""
        return None if self.reference is None else self.reference / max(self.ours, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """The row with its ratio, flat."""
        values = asdict(self)
        settings = values.pop("settings")
        return {**values, **settings, "ratio": self.ratio}


def bundle_config(bundle: str, *names: str, **overrides: Any) -> ConfigParser:
    """The configs of a bundle, merged, with settings overridden."""
    folder = BUNDLES / bundle
    parser = ConfigParser()
    parser.read_config([str(folder / "configs" / f"{name}.json") for name in names])
    parser["bundle_root"] = str(folder)
    for key, value in overrides.items():
        parser[key] = value
    return parser


def require(condition: bool, message: str) -> None:
    """Stop where ours and the reference differ: their times would not be comparable.

    Raises:
        RuntimeError: `condition` is False.
    """
    if not condition:
        raise RuntimeError(f"benchmark: {message}")
