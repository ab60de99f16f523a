"""Labels carried from one patient to another by nearest embeddings: do the features agree between patients?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from custom_components.data import MemoryMappedDataset
from custom_components.errors import InputError
from custom_components.metrics.retrieval import nearest
from custom_components.metrics.segmentation import dice_score
from custom_components.metrics.tables import write_csv
from custom_components.networks import DenseSSLNetwork

from .vectors import vectors_at

logger = logging.getLogger(__name__)

COLUMNS = ("case", "source", "class", "dice")


class LabelTransfer:
    """Give each voxel of a scan the label of the most similar voxel of another patient, without any training.

    A scan takes its labels from the `sources` scans of other patients that follow it in the list, which starts again
    after its last one.
    Voxels are drawn at random from the body, so that Dice is an estimate: that of the drawn voxels.

    Args:
        network: on the device to use; its embeddings are compared.
        dataset: prepared scans, whole, at least two: `image` `(C, H, W, D)`, `label` and `body` `(1, H, W, D)`,
            `annotated` `(K,)`, `case`.
        class_names: names of label values 1..K.
        csv_path: file for the rows `case,source,class,dice`, `dice` empty where the class is not annotated in both.
        sources: scans that a scan takes labels from, one after the other; at most all of other patients.
        keys: voxels drawn from the source.
        queries: voxels drawn from the scan.
        seed: decides which ones.

    Source: the retrieval between patients of SAM (Yan et al., IEEE TMI 2022), with organs in place of landmarks.
    """

    def __init__(
        self,
        network: DenseSSLNetwork,
        dataset: MemoryMappedDataset,
        class_names: Sequence[str],
        csv_path: str | Path,
        sources: int = 1,
        keys: int = 10_000,
        queries: int = 20_000,
        seed: int = 0,
    ) -> None:
        self.network, self.dataset, self.class_names, self.csv_path = network, dataset, list(class_names), csv_path
        self.sources, self.keys, self.queries, self.seed = sources, keys, queries, seed

    def run(self) -> dict[str, float]:
        """Transfer, write the table, and return the mean Dice of each class; the log tells them and their mean.

        Raises:
            InputError: scans of fewer than two patients.
        """
        sources = self._sources_of()
        self.network.eval()
        # voxels are kept until the last scan that needs them
        last = {other: index for index, others in enumerate(sources) for other in others}
        drawn: dict[int, dict[str, Any]] = {}
        rows: list[dict[str, Any]] = []
        for index, others in enumerate(tqdm(sources, desc="label transfer", unit="scan")):
            for scan in (index, *others):
                if scan not in drawn:
                    drawn[scan] = self._voxels(scan)
            for other in others:
                rows += self._rows(drawn[index], drawn[other])
            drawn = {scan: voxels for scan, voxels in drawn.items() if max(scan, last.get(scan, 0)) > index}
        write_csv(self.csv_path, COLUMNS, rows)
        means = {}
        for name in self.class_names:
            values = [row["dice"] for row in rows if row["class"] == name and row["dice"] is not None]
            if values:
                means[name] = sum(values) / len(values)
        parts = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        if means:
            mean = sum(means.values()) / len(means)
            logger.info("label transfer between patients: mean Dice %.3f (%s); wrote %s", mean, parts, self.csv_path)
        return means

    def _sources_of(self) -> list[list[int]]:
        """For each scan, the places of those that it takes labels from."""
        patients = [str(item.get("patient", item["case"])) for item in self.dataset.data]
        count = len(patients)
        if len(set(patients)) < 2:
            raise InputError(
                f"label_transfer: needs labelled scans of two patients or more in this part of the split but there are "
                f"{count} of {len(set(patients))}; use --split all"
            )
        following = [[(index + step) % count for step in range(1, count)] for index in range(count)]
        return [
            [other for other in others if patients[other] != patients[index]][: self.sources]
            for index, others in enumerate(following)
        ]

    def _voxels(self, index: int) -> dict[str, Any]:
        """Embeddings and labels of random body voxels of a scan."""
        scan = self.dataset[index]
        image, label, body = (torch.as_tensor(scan[key]) for key in ("image", "label", "body"))
        found = body[0].nonzero()
        if not len(found):
            found = torch.ones_like(body[0]).nonzero()
        generator = torch.Generator().manual_seed(self.seed)
        positions = found[torch.randperm(len(found), generator=generator)[: max(self.keys, self.queries)]]
        return {
            "case": scan["case"],
            "annotated": torch.as_tensor(scan["annotated"]).bool(),
            "labels": label[0][tuple(positions.T)].long(),
            "embeddings": self._embeddings(image, positions),
        }

    @torch.no_grad()
    def _embeddings(self, image: Tensor, positions: Tensor) -> Tensor:
        backbone = self.network.backbone
        vectors = vectors_at(backbone, image.float(), positions).to(next(backbone.parameters()).device)
        return self.network.embed_vectors(vectors.split(backbone.channels, -1))

    def _rows(self, target: Mapping[str, Any], source: Mapping[str, Any]) -> list[dict[str, Any]]:
        queries, keys = target["embeddings"][: self.queries], source["embeddings"][: self.keys]
        predicted = source["labels"][nearest(queries, keys).cpu()]
        truth = target["labels"][: self.queries]
        rows = []
        for k, name in enumerate(self.class_names):
            both = bool(target["annotated"][k] and source["annotated"][k])
            dice = dice_score(predicted == k + 1, truth == k + 1) if both else None
            rows.append({"case": target["case"], "source": source["case"], "class": name, "dice": dice})
        return rows
