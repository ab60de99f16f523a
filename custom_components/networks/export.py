"""A network as an ONNX file, for runtimes other than PyTorch."""

from __future__ import annotations

import copy
import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from custom_components.errors import InputError
from custom_components.files import whole_file

from .folding import fold_batch_norm

INSTALL = "pip install 'onnx>=1.17,<2' 'onnxscript>=0.5,<1' 'onnxruntime>=1.20,<2'"


def export_onnx(
    network: nn.Module, path: str | Path, size: Sequence[int], in_channels: int = 1, tolerance: float = 1e-4
) -> float:
    """Write `network` as ONNX: input `image` `(N, C, H, W, D)`, output `pred`, all of N, H, W and D free; float32.

    What was written is run by ONNX Runtime on images of `size`, of odd sizes and of two at a time, and compared with
    PyTorch before the file gets its name.

    Args:
        path: the file; its folder is made.
        size: spatial size of the images to compare on.
        tolerance: largest difference, relative to the largest output where that is above 1.

    Returns:
        The largest difference.

    Raises:
        InputError: a package is missing, or the difference is too large; no file is written.
    """
    _require_packages()
    network = copy.deepcopy(network).cpu().float().eval()
    axis = torch.export.Dim.DYNAMIC
    with whole_file(path) as partial:
        with _quiet(), torch.no_grad():
            # two images, because a size of 1 would be taken as fixed
            program = torch.onnx.export(
                fold_batch_norm(network),
                (torch.rand(2, in_channels, *size),),
                input_names=["image"],
                output_names=["pred"],
                dynamic_shapes=({0: axis, 2: axis, 3: axis, 4: axis},),
                dynamo=True,
                verbose=False,
            )
            program.save(partial, external_data=False)  # type: ignore[union-attr]
        difference = _difference(network, partial, size, in_channels)
        if not difference <= tolerance:
            raise InputError(
                f"{path}: not written, because it differs from PyTorch by {difference:.1e}, more than {tolerance:g}"
            )
    return difference


def _difference(network: nn.Module, path: Path, size: Sequence[int], in_channels: int) -> float:
    """Largest difference of ONNX Runtime to PyTorch, relative to the largest output where that is above 1."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    odd = [max(1, length - 2 * axis - 1) for axis, length in enumerate(size)]
    worst = 0.0
    for shape in ((1, in_channels, *size), (1, in_channels, *odd), (2, in_channels, *odd[::-1])):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = network(image).numpy()
        found = session.run(None, {"image": image.numpy()})[0]
        if found.shape != expected.shape:
            raise InputError(f"{path.stem}: gives the shape {found.shape} where PyTorch gives {expected.shape}")
        worst = max(worst, float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max())))
    return worst


def _require_packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"export to ONNX needs the package {name}, which is not installed; {INSTALL}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks, about torchvision for instance, that nobody can act on."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
