"""Dice and 95% Hausdorff distance a case and class, for partly annotated scans."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from monai.metrics import compute_hausdorff_distance
from torch import Tensor

from .tables import write_csv

logger = logging.getLogger(__name__)

COLUMNS = ("case", "class", "dice", "hd95_mm")


def dice_score(prediction: Tensor, truth: Tensor) -> float | None:
    """Dice coefficient of two masks; None where the truth is empty.

    There is nothing to overlap then, and a 0 for what is found would make the scans that count another set for every
    network; `hausdorff_95` tells it.
    """
    if not truth.any():
        return None
    return 2 * int((prediction & truth).sum()) / (int(prediction.sum()) + int(truth.sum()))


def hausdorff_95(prediction: Tensor, truth: Tensor, spacing: Sequence[float]) -> float | None:
    """95th percentile of the symmetric surface distance in mm of two masks `(H, W, D)`.

    None where both are empty, infinite where one is.
    """
    if not prediction.any() or not truth.any():
        return None if prediction.any() == truth.any() else math.inf
    # distances depend on nothing outside the two masks: their bounding box, one voxel wider, is enough
    box = _bounding_box(prediction | truth)
    first, second = (mask[box][None, None].float() for mask in (prediction, truth))
    return float(
        compute_hausdorff_distance(first, second, include_background=True, percentile=95, spacing=list(spacing))
    )


def _bounding_box(mask: Tensor) -> tuple[slice, ...]:
    where = mask.nonzero()
    return tuple(
        slice(max(int(low) - 1, 0), int(high) + 2) for low, high in zip(where.amin(0).tolist(), where.amax(0).tolist())
    )


class SegmentationScores(Metric):
    """Dice and 95% Hausdorff distance of every case and annotated class; the key figure is the mean Dice.

    `compute` returns the mean over classes of the mean over cases, and writes `csv_path` where one is given: one row a
    case and class with the columns `case,class,dice,hd95_mm`; both values are empty where the class is not annotated in
    that scan, or neither there nor found. Where it was missed, Dice is 0 and `hd95_mm` `inf`; where it is not there and
    was found, Dice is empty and `hd95_mm` `inf`.

    Args:
        class_names: names of label values 1..K.
        csv_path: file for the rows; None writes none.
        hausdorff: compute surface distances too; slower.

    Reads decollated items of the engine: `pred` and `label`, integer volumes `(1, H, W, D)` on one grid, `label` a
    `MetaTensor` with the affine; `case` and (optional) `annotated` from the batch.
    """

    def __init__(
        self, class_names: Sequence[str], csv_path: str | Path | None = None, hausdorff: bool = False, **kwargs: Any
    ) -> None:
        self.class_names, self.csv_path, self.hausdorff = list(class_names), csv_path, hausdorff
        super().__init__(**kwargs)

    def reset(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.drawn: list[tuple[str, set[str], set[str]]] = []  # a case, its annotated classes, those that have voxels

    def iteration_completed(self, engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output):
            # an annotator's scans have no names
            case = item.get("case", f"scan {len(self.rows) // len(self.class_names) + 1}")
            self.update({"case": case, "annotated": item.get("annotated"), **output})

    def update(self, output: dict[str, Any]) -> None:
        """Score one case.

        Raises:
            ValueError: the prediction has another shape than the label.
        """
        # a label on its own grid comes from the CPU, whatever the device of the rest
        volumes = (torch.as_tensor(output[key])[0].cpu() for key in ("pred", "label"))
        prediction, truth = (volume.round().to(torch.int16) for volume in volumes)
        if prediction.shape != truth.shape:
            raise ValueError(
                f"{output['case']}: the prediction is {tuple(prediction.shape)} but the label is {tuple(truth.shape)}"
            )
        affine = np.asarray(getattr(output["label"], "affine", np.eye(4)), dtype=float)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        annotated = output.get("annotated")
        self.drawn.append((output["case"], set(), set()))
        for k, name in enumerate(self.class_names):
            row: dict[str, Any] = {"case": output["case"], "class": name, "dice": None, "hd95_mm": None}
            if annotated is None or annotated[k]:
                masks = prediction == k + 1, truth == k + 1
                row["dice"] = dice_score(*masks)
                self.drawn[-1][1].add(name)
                if masks[1].any():
                    self.drawn[-1][2].add(name)
                if self.hausdorff:
                    row["hd95_mm"] = hausdorff_95(*masks, spacing)
            self.rows.append(row)

    def class_means(self, column: str = "dice") -> dict[str, float]:
        """Mean of a column over the cases in which each class is annotated; infinite distances are left out."""
        means = {}
        for name in self.class_names:
            values = [row[column] for row in self.rows if row["class"] == name and row[column] is not None]
            finite = [value for value in values if math.isfinite(value)]
            if finite:
                means[name] = sum(finite) / len(finite)
        return means

    def compute(self) -> float:
        if self.csv_path is not None:
            write_scores(self.rows, self.csv_path)
            self._tell_undrawn()
        means = self.class_means()
        return sum(means.values()) / len(means) if means else 0.0

    def _tell_undrawn(self) -> None:
        """Warn of what has no score though it is annotated."""
        scored = [entry for entry in self.drawn if entry[1]]
        empty = [case for case, _, shown in scored if not shown]
        absent = [
            name
            for name in self.class_names
            if any(name in classes for _, classes, _ in scored) and not any(name in shown for _, _, shown in scored)
        ]
        if empty:
            logger.warning(
                "%d of %d scored scans have a label without any voxel of a class, such as %s, and so no Dice; remove "
                "labels that were never drawn",
                len(empty),
                len(scored),
                empty[0],
            )
        if absent and len(empty) < len(scored):
            logger.warning(
                "%s: no voxel in any of the %d scored scans, and so no Dice; score scans that show it",
                ", ".join(absent),
                len(scored),
            )

    def completed(self, engine: Any, name: str) -> None:
        super().completed(engine, name)
        engine.state.metrics.update({f"dice_{key}": value for key, value in self.class_means().items()})
        if self.hausdorff:
            distances = self.class_means("hd95_mm")
            engine.state.metrics.update({f"hd95_mm_{key}": value for key, value in distances.items()})
            if distances:
                engine.state.metrics["hd95_mm"] = sum(distances.values()) / len(distances)


def write_scores(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Write rows of `SegmentationScores` as CSV."""
    write_csv(path, COLUMNS, rows)


def mean_by_class(path: str | Path, column: str = "dice") -> dict[str, float]:
    """Mean of a column of `metrics.csv` a class, over its cases with a finite value."""
    values: dict[str, list[float]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if row[column] and math.isfinite(float(row[column])):
                values.setdefault(row["class"], []).append(float(row[column]))
    return {name: sum(found) / len(found) for name, found in values.items()}
