"""A network in a form that computes the same, to rounding, in less time; for inference only."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from custom_components.errors import InputError

from .fpn import ResidualStack
from .openvino_network import OpenVINONetwork

BACKENDS = ("torch", "openvino")
SLAB_ELEMENTS = 2**22  # 16 MB in single precision
MIN_SLAB_ROWS = 32  # the rows that are computed twice are few beside them


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy, in evaluation mode, in which each batch norm that directly follows a convolution is part of it.

    "Directly" means next to it in an `nn.Sequential`, as the second norm of a pre-activation residual block is; the
    first one follows the sum of a block and its skip, and stays.
    """
    folded = copy.deepcopy(network).eval()
    for layers in _sequences(folded):
        for i, (convolution, norm) in enumerate(zip(list(layers), list(layers)[1:])):
            if isinstance(convolution, nn.Conv3d) and isinstance(norm, _BatchNorm) and norm.track_running_stats:
                layers[i], layers[i + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    return folded


def fast_network(network: nn.Module, backend: str = "torch", cpu_bfloat16: bool = False) -> nn.Module:
    """A copy in evaluation mode that computes the same to rounding and cannot be trained.

    "torch": batch norms folded, ReLUs and sums in place, every convolution on CPUs by oneDNN, channels last in memory.
    "openvino": compiled by OpenVINO, on CPUs only; see `OpenVINONetwork`.

    Args:
        network: of one tensor to another.
        backend: "torch" or "openvino".
        cpu_bfloat16: "torch" on CPUs computes and gives bfloat16, in half the memory and, where the CPU multiplies in
            it (`has_native_bfloat16`), in half the time.

    Raises:
        InputError: an unknown backend; OpenVINO is not installed, or the network is not on the CPU.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, but is {backend!r}")
    if backend == "openvino":
        return OpenVINONetwork(fold_batch_norm(network).requires_grad_(False))
    fast = copy.deepcopy(network)
    for layers in _sequences(fast):
        for i, (before, activation) in enumerate(zip(list(layers), list(layers)[1:])):
            # what a norm or a convolution gives is needed by nobody else
            if isinstance(activation, nn.ReLU) and isinstance(before, (_BatchNorm, nn.Conv3d)):
                layers[i + 1] = nn.ReLU(inplace=True)
    fast = fold_batch_norm(fast).requires_grad_(False)
    for module in fast.modules():
        if type(module) is ResidualStack:
            module.__class__ = InPlaceStack  # the same state, another forward
    if torch.backends.mkldnn.is_available():
        for module in fast.modules():
            if type(module) is nn.Conv3d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
                module.__class__ = OneDNNConv3d
    fast = fast.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    on_cpu = all(parameter.device.type == "cpu" for parameter in fast.parameters())
    return InBfloat16(fast) if cpu_bfloat16 and on_cpu else fast


class InBfloat16(nn.Module):
    """A network that takes tensors of any precision and computes in bfloat16, which it also gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(torch.bfloat16)

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image.to(torch.bfloat16))


class InPlaceStack(ResidualStack):
    """Residual blocks that add to their input, which in `FPN3d` nobody else needs: less memory, and less time.

    On CPUs a large input goes through a block slab by slab along its first axis, so that what lies between the
    convolutions is never there whole, for a few per cent more work where slabs meet.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = max(SLAB_ELEMENTS // max(x[:, :, :1].numel(), 1), MIN_SLAB_ROWS)
        for block in self.layers:
            layers = cast(nn.Sequential, block.layers)
            if rows >= x.shape[2] or x.device.type != "cpu":
                x += layers(x)
            else:
                _add_in_slabs(x, layers, rows)
        return x


def _add_in_slabs(x: Tensor, layers: nn.Sequential, rows: int) -> None:
    """`x += layers(x)`, `rows` positions of the first spatial axis at a time; the result is the same to rounding."""
    halo = sum(layer.kernel_size[0] // 2 for layer in layers if isinstance(layer, nn.Conv3d))
    before = x[:, :, :0]  # the rows before a slab as they were, because `x` has their sums already
    for start in range(0, x.shape[2], rows):
        stop = min(start + rows, x.shape[2])
        slab = torch.cat([before, x[:, :, start : stop + halo]], 2)
        skipped = before.shape[2]
        before = x[:, :, max(stop - halo, 0) : stop].clone()
        x[:, :, start:stop] += layers(slab)[:, :, skipped : skipped + stop - start]


class FastNetworks:
    """Keeps the fast form of the network that was used last, and makes it anew when a weight changed."""

    def __init__(self, backend: str = "torch", cpu_bfloat16: bool = False) -> None:
        self.backend, self.cpu_bfloat16 = backend, cpu_bfloat16
        self._network: nn.Module | None = None
        self._tensors: list[Tensor] = []
        self._versions: list[int] = []
        self._fast: nn.Module | None = None

    def of(self, network: nn.Module) -> nn.Module:
        """`fast_network` of it; raises the same."""
        tensors = list(network.state_dict(keep_vars=True).values())
        # PyTorch counts the changes of a tensor, except in inference mode
        versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
        kept = network is self._network and versions == self._versions
        if not kept or any(new is not old for new, old in zip(tensors, self._tensors, strict=True)):
            self._fast = fast_network(network, self.backend, self.cpu_bfloat16)
            self._network, self._tensors, self._versions = network, tensors, versions
        assert self._fast is not None
        return self._fast


class OneDNNConv3d(nn.Conv3d):
    """A convolution that is computed by oneDNN on CPUs whatever its size.

    `nn.Conv3d` takes a generic path, up to ten times slower, where a batch of one is small within a slice or, with one
    thread, where the kernel is 1x1x1.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Conv3d
        precision = self.weight.dtype
        if input.device.type != "cpu" or input.dtype != precision or precision not in (torch.float32, torch.bfloat16):
            return super().forward(input)
        padding: Any = self.padding
        return torch.mkldnn_convolution(input, self.weight, self.bias, padding, self.stride, self.dilation, self.groups)


def _sequences(network: nn.Module) -> list[nn.Sequential]:
    return [module for module in network.modules() if isinstance(module, nn.Sequential)]
