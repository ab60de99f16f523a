"""Mixed precision on CPUs that compute in bfloat16; on GPUs it is MONAI's engines that switch it on (`amp`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor
from torch.utils._pytree import tree_map_only


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 (AVX512-BF16: AMD since Zen 4, Intel Xeon since Cooper Lake).

    Others emulate it, up to 200 times slower than single precision, and those without AVX-512 have no convolutions in
    it. False where PyTorch cannot tell.
    """
    capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return bool(capabilities().get("avx512_bf16", False))


class AutocastInferer(Inferer):
    """Runs a network on CPUs in mixed precision: convolutions and matrix products in bfloat16, the result in float32.

    Inputs on other devices take the network as it is.

    Args:
        inferer: that calls the network, on the whole input or in windows; a `SimpleInferer` if None.
        cpu_bfloat16: False switches it off; see `has_native_bfloat16`.

    Call it as the inferer. Returns what that does, tensors of bfloat16 in single precision.
    """

    def __init__(self, inferer: Inferer | None = None, cpu_bfloat16: bool = True) -> None:
        super().__init__()
        self.inferer = inferer or SimpleInferer()
        self.cpu_bfloat16 = cpu_bfloat16

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.cpu_bfloat16 or inputs.device.type != "cpu":
            return self.inferer(inputs, network, *args, **kwargs)

        def in_bfloat16(*arguments: Any, **options: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                result = network(*arguments, **options)
            return tree_map_only(Tensor, _in_single_precision, result)

        return self.inferer(inputs, in_bfloat16, *args, **kwargs)


def _in_single_precision(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
