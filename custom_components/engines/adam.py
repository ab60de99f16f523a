"""Adam as one kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class FusedAdam(torch.optim.Adam):
    """`torch.optim.Adam` with the update of all parameters as one kernel; on CPU and CUDA.

    It also goes on from the state of an Adam that is not fused.

    Args:
        params, lr, kwargs: as in `torch.optim.Adam`.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(params, lr, fused=True, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        # the state's own settings would turn it off, and mixed precision would then fail
        groups = [{**group, "fused": True, "foreach": None} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})
