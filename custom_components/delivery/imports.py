"""A process has one `custom_components`; bundles that bring another are told so."""

from __future__ import annotations

import hashlib
from pathlib import Path

from custom_components.errors import InputError

OWN = Path(__file__).resolve().parents[1]


def code_digest(package: Path) -> str:
    """SHA-256 over the names and contents of a package's Python files."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def require_copy(bundle_root: str | Path) -> None:
    """Called by packed bundles first of all: the code that runs must be the code that the bundle brought.

    Several bundles of the same release share it in one process. Where another was imported before, from another
    release or an installed package, results could differ from the measured ones without a word.

    Raises:
        InputError: the imported `custom_components` differs from the one in `bundle_root`.
    """
    brought = Path(bundle_root).resolve() / "custom_components"
    if brought.is_dir() and brought != OWN and code_digest(brought) != code_digest(OWN):
        raise InputError(
            f"{bundle_root}: brings its own custom_components, but this process has already imported another, from "
            f"{OWN}; run this bundle in a process of its own"
        )
