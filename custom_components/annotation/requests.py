"""The scans of a training request: an image and a label each, with classes of the annotator's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from custom_components.data import DataError, LoadScan, checked


def is_annotator_data(items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether items are those of MONAI Label's request, which have paths and nothing else, and not of a datalist."""
    return all("case" not in item for item in items)


def annotated_class_names(items: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> list[str]:
    """The classes to train: the bundle's, and "label 8", "label 9", ... for the label values that come after them.

    Items of a datalist have the bundle's classes. Those of an annotator are checked first, as `read_datalist` would.

    Args:
        items: the training scans.
        class_names: the bundle's classes, of the label values 1, 2, ...

    Raises:
        DataError: no scan at all, or one line for each fault: a file that is missing or no scan, an image and a label
            on different grids, a label with values that are no whole numbers from 0 to 255.
    """
    if not is_annotator_data(items):
        return list(class_names)
    if not items:
        raise DataError("the training request has no labelled scan; save the label of one scan at least, then train")
    checked([dict(item) for item in items])
    highest, faults = len(class_names), []
    for item in items:
        values = np.unique(np.asarray(LoadScan(image_only=True)(item["label"])))
        if (values != values.round()).any() or values.min() < 0 or values.max() > 255:
            faults.append(
                f"{item['label']}: label values must be whole numbers from 0 to 255 but are {values.min():g} to "
                f"{values.max():g}; save the label as integers"
            )
        highest = max(highest, int(values.max()))
    if faults:
        raise DataError("\n".join(faults))
    return [*class_names, *(f"label {value}" for value in range(len(class_names) + 1, highest + 1))]
