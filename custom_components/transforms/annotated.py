"""Which classes are annotated in a scan, as a vector that can be collated."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Transform

logger = logging.getLogger(__name__)


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


def crop_ratios(items: Sequence[Mapping[str, Any]], num_classes: int) -> list[float]:
    """`ratios` for MONAI's `RandCropByLabelClassesd` that favour the classes which are drawn in few scans.

    Without them, a class drawn in a third of the scans gets at most a third as many crops as one that is drawn in all;
    with them, it gets three times as many in the scans where it is drawn.

    Args:
        items: the training scans, with `annotated_labels` (label values drawn in that scan; all where absent).
        num_classes: K, without the background.

    Returns:
        K + 1 ratios: 1 for the background, then scans / scans in which the class is drawn (1 for a class in none).
    """
    drawn = [sum(k in item.get("annotated_labels", (k,)) for item in items) for k in range(1, num_classes + 1)]
    return [1.0, *(len(items) / count if count else 1.0 for count in drawn)]


def tell_undrawn_classes(dataset: Any, class_names: Sequence[str]) -> None:
    """Warn of classes that no training scan shows, and of labels without any voxel: neither stops a training.

    Args:
        dataset: the training scans, a `MemoryMappedDataset` with `annotated` and `class_indices` (see `ClassIndicesd`).
        class_names: K names, of label values 1 to K.
    """
    shown, annotated = torch.zeros(2, len(dataset), len(class_names), dtype=torch.bool)
    empty = []
    for index in range(len(dataset)):
        item = dataset.prepared(index)  # not kept: its memory maps are open files
        # the table has no column where nothing at all has a voxel
        shown[index] = (item["class_indices"][1:] >= 0).any(1)
        annotated[index] = item["annotated"] > 0
        if not shown[index].any():
            empty.append(str(item.get("case", "one")))
    for k, name in enumerate(class_names):
        if len(dataset) and not annotated[:, k].any():
            logger.warning(
                "%s: is not among the annotated_labels of any of the %d training scans and cannot be learnt; correct "
                "them, or leave it out of class_names",
                name,
                len(dataset),
            )
        elif len(dataset) and not (shown & annotated)[:, k].any():
            logger.warning(
                "%s: has no voxel in any of the %d training scans where it is annotated and cannot be learnt; correct "
                "their labels, or leave it out of class_names",
                name,
                int(annotated[:, k].sum()),
            )
    if empty:
        logger.warning(
            "%d of %d training scans have a label without any voxel of a class, such as %s: right where none of "
            "them is in view; else remove the label",
            len(empty),
            len(dataset),
            empty[0],
        )
