"""How well a voxel is found again in another view: a measure of the representation that needs no labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.metrics import Metric
from torch import Tensor

from .tables import write_csv


class VoxelRetrieval(Metric):
    """Retrieve each voxel of view 1 among the sampled voxels of view 2 by its embedding.

    `compute` returns the share of voxels whose nearest embedding lies within `within` voxels of the true one (Chebyshev
    distance, 0 = the very voxel), as a mean over pairs. `results` has, likewise as means over pairs, that share for
    each of `distances`, the median distance in mm, the restoration error (mean squared) and the number of pairs.

    Args:
        spacing: voxel spacing of the views, mm.
        within: distance of the key figure, voxels.
        distances: distances reported in `results`, voxels.
        csv_path: file for the figures of every pair, with its case; None writes none.

    Source: the retrieval protocol of SAM (Yan et al., IEEE TMI 2022), on the views of this method.
    """

    def __init__(
        self,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        within: int = 1,
        distances: Sequence[int] = (0, 1, 3),
        csv_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        self.csv_path = csv_path
        self.spacing = torch.tensor([float(s) for s in spacing])
        self.within, self.distances = within, tuple(sorted({within, *distances}))
        super().__init__(**kwargs)

    def reset(self) -> None:
        self.pairs: list[dict[str, float]] = []
        self.cases: list[str] = []

    def iteration_completed(self, engine: Any) -> None:
        self.update(engine.state.output, engine.state.batch.get("case"))

    def update(self, output: dict[str, Any], cases: Sequence[str] | None = None) -> None:
        """Add a batch of pairs.

        Args:
            output: that of an engine that uses `prepare_views`.
            cases: the case of each pair.
        """
        embeddings, restored = output["pred"]
        target = output["label"]
        error = (restored.float() - target["original"].float()).square().flatten(1).mean(1).chunk(2)
        first, second = embeddings.float().chunk(2)
        for i, (query, key, voxels) in enumerate(zip(first, second, target["voxels"].chunk(2)[1])):
            valid = voxels[:, 0] >= 0
            if not valid.any():
                continue
            positions = voxels[valid]
            found = positions[nearest(query[valid], key[valid])]
            offset = (found - positions).abs()
            distance = (offset * self.spacing.to(offset.device)).square().sum(1).sqrt()
            voxel_distance = offset.amax(1)
            row = {f"retrieved_within_{d}": (voxel_distance <= d).float().mean().item() for d in self.distances}
            row["median_distance_mm"] = distance.median().item()
            row["restoration_error"] = (error[0][i] + error[1][i]).item() / 2
            self.pairs.append(row)
            self.cases.append(cases[i] if cases is not None else "")

    @property
    def results(self) -> dict[str, float]:
        """All figures, each the mean over pairs."""
        if not self.pairs:
            return {"pairs": 0}
        means = {name: sum(row[name] for row in self.pairs) / len(self.pairs) for name in self.pairs[0]}
        return {**means, "pairs": len(self.pairs)}

    def compute(self) -> float:
        if self.csv_path is not None and self.pairs:
            rows = [{"case": case, **row} for case, row in zip(self.cases, self.pairs)]
            write_csv(self.csv_path, list(rows[0]), rows)
        return self.results.get(f"retrieved_within_{self.within}", 0.0)

    def completed(self, engine: Any, name: str) -> None:
        super().completed(engine, name)
        engine.state.metrics.update(self.results)


def nearest(query: Tensor, key: Tensor, chunk: int = 2048) -> Tensor:
    """Index of the most similar row of `key` `(M, E)` for each row of `query` `(V, E)`, both of length 1."""
    return torch.cat([(rows @ key.T).argmax(1) for rows in query.split(chunk)])
