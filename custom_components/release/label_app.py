"""The folder of bundles that MONAI Label's `monaibundle` app serves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from custom_components.delivery import unzip_bundle
from custom_components.errors import InputError
from custom_components.networks import SegmentationNetwork, load_backbone, provenance_path, save_weights

from .packing import pack_bundle

CONFIGS = ("train", "evaluate", "inference")
# far below every logit: a class that nothing was learned of yet
UNTRAINED_LOGIT = -20.0


def add_model(bundle: Path, models: Path, labels: Sequence[str] = ()) -> Path:
    """Put a segmentation bundle, with its code, into an app's folder of models.

    What is there already stays as it is: it may have been trained by its annotators.

    Args:
        bundle: folder of the bundle.
        models: the app's folder, `APP/model`.
        labels: classes of the annotator's own, of the label values 1, 2, ...; none takes the bundle's. With classes of
            its own a model knows nothing until it is trained, and its features are those of the bundle's backbone.

    Returns:
        The model's folder.

    Raises:
        InputError: no such bundle, no weights, or a model with other labels is there.
    """
    if not (bundle / "configs" / "train.json").is_file() or "segmentation" not in bundle.name:
        raise InputError(f"{bundle}: a segmentation bundle was expected there; check the name")
    if not (bundle / "models" / "model.pt").is_file():
        raise InputError(f"{bundle}: has no models/model.pt; train the bundle first, or take one that has weights")
    target = models / bundle.name
    if target.is_dir():
        served = _read(target, "inference")["class_names"]
        if labels and served != list(labels):
            raise InputError(f"{target}: has the labels {', '.join(served)}; name another app folder for other labels")
        return target
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix=".model_") as temporary:
        packed = pack_bundle(bundle, Path(temporary) / "packed.zip")
        unzipped = unzip_bundle(packed, bundle.name, Path(temporary) / bundle.name)
        if labels:
            _give_labels(unzipped, list(labels))
        unzipped.rename(target)
    return target


def _give_labels(bundle: Path, labels: list[str]) -> None:
    """Classes of the annotator's own in a bundle's configs, and a network that finds none of them yet."""
    for name in CONFIGS:
        _write(bundle, name, {**_read(bundle, name), "class_names": labels, "mirrored_classes": []})
    metadata = _read(bundle, "metadata")
    output = next(iter(metadata["network_data_format"]["outputs"].values()))
    output["channel_def"] = {str(value): name for value, name in enumerate(["background", *labels])}
    output["num_channels"] = len(labels)
    # figures of other classes
    metadata.pop("eval_metrics", None)
    _write(bundle, "metadata", metadata)
    pretrained = bundle / "models" / "pretrained.pt"
    backbone = load_backbone(pretrained)
    network = SegmentationNetwork(len(labels), backbone.in_channels, backbone.base_channels, backbone.num_scales)
    network.backbone.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.zero_()
        network.head.layers[0].bias.fill_(UNTRAINED_LOGIT)  # type: ignore[union-attr,index]
    record = json.loads(provenance_path(pretrained).read_text())
    record.pop("sha256", None)
    save_weights(network, bundle / "models" / "model.pt", {**record, "classes": labels, "selection": "head untrained"})


def _read(bundle: Path, name: str) -> dict[str, Any]:
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


def _write(bundle: Path, name: str, content: dict[str, Any]) -> None:
    (bundle / "configs" / f"{name}.json").write_text(json.dumps(content, indent=4) + "\n")
