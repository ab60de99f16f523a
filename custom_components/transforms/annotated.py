"""Which classes are annotated in a scan, as a vector that can be collated."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import Transform


class AnnotatedClassesd(Transform):
    """Replace `annotated_labels` (a list of label values) by `annotated`, a float vector `(num_classes,)` of 0 and 1.

    An item without `annotated_labels` counts as fully annotated.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        values = result.pop("annotated_labels", range(1, self.num_classes + 1))
        result["annotated"] = torch.tensor([float(k + 1 in values) for k in range(self.num_classes)])
        return result
