"""The linear probe as a training that a bundle runs: vectors from the cache, head, weight file."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from tqdm import tqdm

from custom_components.data import MemoryMappedDataset
from custom_components.errors import InputError
from custom_components.files import whole_file
from custom_components.networks import LinearHead, SegmentationNetwork, save_weights
from custom_components.networks.weight_files import provenance_path
from custom_components.provenance import git_commit, training_record

from .linear import fit_linear_head
from .vectors import VoxelVectors, sample_voxels, vectors_at

logger = logging.getLogger(__name__)

# Of 0.0001 to 1, fitted to 1 and 2 scans, in both released bundles: the Dice on other scans falls with a smaller one
ANCHOR = 0.1


class LinearProbe:
    """Fit the linear head of a network to annotated scans, its backbone frozen, and write the weights.

    The vectors of a scan are kept on disk for as long as its files, its preparation and the backbone stay the same, so
    that a second training with one scan more runs only that one through the backbone.

    Args:
        network: with a linear head; on the device to use. Its head is changed in place.
        dataset: prepared scans, whole: `image` `(C, H, W, D)`, `label` `(1, H, W, D)`, `annotated` `(K,)`.
        path: the weight file to write.
        cache_dir: folder for the vectors.
        max_vectors: vectors of all scans together, at most; 500,000 of 240 channels are 0.5 GB.
        per_class, background: voxels of a scan, at most; see `sample_voxels`.
        seed: decides the sampled voxels.
        validator: an evaluator to run with the fitted head, where it has scans.
        settings: for the provenance.
        anchor: state dict of a head that was trained for these classes on more scans, to be adapted; None fits anew.
        cpu_bfloat16: on CPUs the backbone computes in bfloat16, as it does in inference; see `fast_network`.
        replace: whether what a training has written to `path` may be replaced, as where an annotator goes on from it.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        dataset: MemoryMappedDataset,
        path: str | Path,
        cache_dir: str | Path,
        max_vectors: int = 500_000,
        per_class: int = 2000,
        background: int = 4000,
        seed: int = 0,
        validator: Any = None,
        settings: Mapping[str, Any] | None = None,
        anchor: Mapping[str, torch.Tensor] | None = None,
        cpu_bfloat16: bool = False,
        replace: bool = False,
    ) -> None:
        self.anchor, self.replace, self.cpu_bfloat16 = anchor, replace, cpu_bfloat16
        self.network, self.dataset, self.path, self.folder = network, dataset, Path(path), Path(cache_dir) / "vectors"
        self.max_vectors, self.per_class, self.background = max_vectors, per_class, background
        self.seed, self.validator, self.settings = seed, validator, dict(settings or {})

    def run(self) -> None:
        """Fit the head, write the weights; then validate.

        Raises:
            InputError: `path` holds the network of a training, which took longer than this, or its folder a checkpoint,
                and `replace` is False.
            InputError: where the head is not linear.
        """
        start, commit = time.monotonic(), git_commit()
        if not self.replace:
            self._require_no_training()
        self.fit()
        device = next(self.network.parameters()).device
        record = training_record(commit, 0, time.monotonic() - start, device)
        save_weights(self.network, self.path, {**self.settings, **record, "selection": "linear probe"})
        logger.info("wrote %s", self.path)
        if self.validator is not None and len(self.validator.data_loader.dataset):
            self.validator.run()

    def _require_no_training(self) -> None:
        try:
            steps = json.loads(provenance_path(self.path).read_text()).get("steps", 0)
        except (OSError, ValueError):
            steps = 0
        checkpoint = self.path.parent / "checkpoints" / "last.pt"
        if steps > 0 and self.path.is_file():
            what = f"{self.path}: is the network of a training of {steps} steps"
        elif checkpoint.is_file():
            what = f"{checkpoint}: is of a training that was stopped and has yet to write its network"
        else:
            return
        raise InputError(f"{what}, which a linear probe would replace; choose another output_dir")

    def fit(self, max_scans: int | None = None) -> SegmentationNetwork:
        """Read or make the vectors and fit the head, as the whole of a probe or as the start of a fine-tuning.

        Args:
            max_scans: uses the first ones only; None uses all.

        Returns:
            The network.

        Raises:
            InputError: where the head is not linear.
        """
        start = time.monotonic()
        head = self.network.head
        if not isinstance(head, LinearHead):
            raise InputError(f"LinearProbe: the head must be linear but is {type(head).__name__}")
        scans = len(self.dataset) if max_scans is None else min(max_scans, len(self.dataset))
        expected = scans * (self.network.num_classes * self.per_class + 2 * self.background)
        share = min(1.0, self.max_vectors / max(expected, 1))
        counts = max(int(self.per_class * share), 1), max(int(self.background * share), 1)
        self.network.eval()
        backbone = _hash_of(self.network.backbone)
        bar = tqdm(range(scans), desc="feature vectors", unit="scan")
        data = VoxelVectors.joined([self._vectors(index, backbone, *counts) for index in bar])
        data = data.to(next(self.network.parameters()).device)
        if self.anchor is not None:
            head.load_state_dict(dict(self.anchor))
        loss = fit_linear_head(head, data, anchor=None if self.anchor is None else ANCHOR)
        seconds = time.monotonic() - start
        logger.info("linear probe: %d vectors of %d scans, loss %.3f, %.1f s", len(data), scans, loss, seconds)
        return self.network

    def _vectors(self, index: int, backbone: str, per_class: int, background: int) -> VoxelVectors:
        settings = f"{backbone} {per_class} {background} {self.seed} {self.cpu_bfloat16}"
        item = self.dataset.item_folder(self.dataset.data[index]).name
        file = self.folder / f"{hashlib.sha256(f'{item} {settings}'.encode()).hexdigest()[:32]}.pt"
        if file.is_file():
            return VoxelVectors(**torch.load(file, weights_only=True))
        scan = self.dataset[index]
        image, label = (_plain(scan[key]) for key in ("image", "label"))
        positions, weights = sample_voxels(label[0], per_class, background, self.seed)
        vectors = VoxelVectors(
            vectors_at(self.network.backbone, image, positions, cpu_bfloat16=self.cpu_bfloat16),
            label[0][tuple(positions.T)].long(),
            weights,
            _plain(scan["annotated"]).bool()[None].repeat(len(positions), 1),
        )
        with whole_file(file) as partial:
            torch.save(vars(vectors), partial)
        return vectors


def _plain(value: torch.Tensor) -> torch.Tensor:
    return value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)


def _hash_of(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
