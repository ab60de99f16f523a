"""Adam as one kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version


class FusedAdam(torch.optim.Adam):
    """`torch.optim.Adam` with the update of all parameters as one kernel; on CPU and CUDA.

    It also goes on from the state of an Adam that is not fused, or of parameters that lay otherwise in memory.

    Args:
        params, lr, kwargs: as in `torch.optim.Adam`.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(params, lr, fused=True, **kwargs)
        self._aligned = True
        self.register_step_pre_hook(FusedAdam._align)
        self.register_step_post_hook(FusedAdam._count_change)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        # the state's own settings would turn it off, and mixed precision would then fail
        groups = [{**group, "fused": True, "foreach": None} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})
        self._aligned = False

    def _count_change(self, args: Any = (), kwargs: Any = None) -> None:
        """Tell that the parameters have changed, which the kernel does not: `FastNetworks` would keep its old copy."""
        increment_version([parameter for group in self.param_groups for parameter in group["params"]])

    @torch.no_grad()
    def _align(self, args: Any = (), kwargs: Any = None) -> None:
        """Lay the moments out in memory as the parameters are, which the kernel takes for granted.

        Not before the first step: a network may be moved to channels last after the state was loaded.
        """
        if self._aligned:
            return
        for parameter, moments in self.state.items():
            for name, value in moments.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    moments[name] = torch.empty_like(parameter).copy_(value)
        self._aligned = True
