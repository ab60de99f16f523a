"""A network that OpenVINO runs, on CPUs."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from custom_components.errors import InputError


class OpenVINONetwork(nn.Module):
    """Compiles a network with OpenVINO at its first call, for every size of input; float32, as torch computes it.

    Sizes too small for OpenVINO, below 5 voxels with three poolings, are run by torch.

    Args:
        network: on the CPU, in evaluation mode, of one tensor `(N, C, H, W, D)` to another of the same N, H, W and D.

    Raises:
        InputError: the package openvino is not installed, or the network is not on the CPU.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._openvino = _import_openvino()
        self._compiled: Any = None
        # OpenVINO cannot pool an axis of a single voxel: it fails, or gives the result of an earlier call
        pools = sum(isinstance(module, nn.MaxPool3d) for module in network.modules())
        self._smallest = 2 ** (pools - 1) + 1
        if any(parameter.device.type != "cpu" for parameter in network.parameters()):
            raise InputError("the backend openvino is for CPUs; add --device cpu, or use --backend torch")

    def forward(self, image: Tensor) -> Tensor:
        if min(image.shape[2:]) < self._smallest:
            return self.network(image)
        if self._compiled is None:
            self._compiled = self._compile(image)
        inputs = [np.ascontiguousarray(image.numpy(force=True))]
        # a shared output would be overwritten by the next call
        return torch.from_numpy(self._compiled(inputs, share_inputs=True, share_outputs=False)[0])

    def _compile(self, image: Tensor) -> Any:
        openvino = self._openvino
        size = openvino.PartialShape([-1, image.shape[1], -1, -1, -1])
        with torch.no_grad():
            model = openvino.convert_model(self.network, example_input=image, input=[size])
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else half precision, on CPUs that have it
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        return openvino.compile_model(model, "CPU", options)


def _import_openvino() -> Any:
    # importing openvino tells its makers so, over the network, unless that part of it is missing
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            "the backend openvino needs the package openvino; install it with pip install 'openvino>=2025,<2027', "
            "or use --backend torch"
        ) from error
    return openvino
