"""Serve the segmentation bundles in MONAI Label, offline.

.venv-monailabel/bin/python -m scripts.monailabel --studies FOLDER
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import fire

from custom_components.errors import InputError
from custom_components.release.label_app import add_model

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"


def serve(
    studies: str,
    models: str | tuple[str, ...] = "",
    labels: str | tuple[str, ...] = "",
    app: str = "monailabel_app",
    host: str = "127.0.0.1",
    port: int = 8000,
    start: bool = True,
) -> None:
    """Prepare the app's folder and start the server.

    Args:
        studies: folder of scans (.nii.gz); labels that are saved go to its sub-folder labels/final.
        models: bundles, with commas; none: every segmentation bundle that has weights.
        labels: classes to draw instead of a bundle's own, with commas; needs one model.
        app: the app's folder; models that are there already, trained or not, stay as they are.
        host, port: where the server listens; it asks nobody for a password.
        start: False only prepares the folder.
    """
    try:
        command, environment = _prepare(Path(str(studies)), _names(models), _names(labels), Path(str(app)), host, port)
    except (InputError, OSError) as error:
        sys.exit(f"monailabel: {error}")
    if start:
        os.execve(sys.executable, command, environment)
    print(shlex.join(command))


def _names(given: str | tuple[str, ...]) -> list[str]:
    parts = given.split(",") if isinstance(given, str) else [str(part) for part in given]
    return [part.strip() for part in parts if part.strip()]


def _prepare(
    studies: Path, models: list[str], labels: list[str], app: Path, host: str, port: int
) -> tuple[list[str], dict[str, str]]:
    """The server's command and environment, once its folder is complete."""
    if importlib.util.find_spec("monailabel") is None:
        raise InputError(
            "the package monailabel is not installed here; run bash scripts/setup_monailabel.sh, then "
            ".venv-monailabel/bin/python -m scripts.monailabel"
        )
    if not studies.is_dir():
        raise InputError(f"{studies}: no such folder; --studies must be the folder of the scans")
    names = models or sorted(p.parents[1].name for p in BUNDLES.glob("*_segmentation/models/model.pt"))
    if labels and len(names) != 1:
        raise InputError(f"--labels needs one model, not {', '.join(names)}; choose it with --models")
    folder = app / "monaibundle"
    if not folder.is_dir():
        app.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=app, prefix=".monaibundle_") as temporary:
            download = ["apps", "--download", "--name", "monaibundle", "--output", temporary]
            command = [sys.executable, "-m", "monailabel.main", *download]
            if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
                raise InputError(f"{folder}: MONAI Label could not write its app there; its output above says why")
            (Path(temporary) / "monaibundle").rename(folder)
    for name in names:
        add_model(BUNDLES / name, folder / "model", labels)
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(folder)]
    command += ["--studies", str(studies), "--host", str(host), "--port", str(port)]
    for key, value in {"models": ",".join(names), "zoo_source": "local", "sam2": "false"}.items():
        command += ["--conf", key, value]
    # its training processes look for torchrun and need the variable
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return command, {**os.environ, "PATH": path, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


if __name__ == "__main__":
    fire.Fire(serve)
