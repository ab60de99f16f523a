"""The network that an annotator's training starts from."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from custom_components.networks import SegmentationNetwork, load_pretrained_backbone, provenance_path, read_weights

logger = logging.getLogger(__name__)

RELEASED = "released.pt"


def start_network(
    network: SegmentationNetwork,
    pretrained: str | Path | None,
    weights: str | Path,
    classes: Sequence[str],
    annotating: bool,
) -> SegmentationNetwork:
    """Load what a training starts from.

    A training from the command line starts from a pretrained backbone. An annotator's goes on from the network that
    the server uses, whose file it will replace: the bundle's own weights are kept beside it as `released.pt`.

    Args:
        network: changed in place. Its head is loaded only for an annotator, and where the file has it for the same
            number of classes.
        pretrained: the backbone's file; None or "none" for an untrained one.
        weights: the file of the network in use, `models/model.pt`.
        classes: the classes to train; the head is made anew where it has another number.
        annotating: whether the training is an annotator's.

    Raises:
        WeightsError: as `load_pretrained_backbone`.
    """
    network.set_num_classes(len(classes))
    if not annotating:
        load_pretrained_backbone(network, pretrained)
        return network
    weights = Path(weights)
    kept = weights.with_name(RELEASED)
    if weights.is_file() and not kept.exists():
        shutil.copyfile(weights, kept)
        if provenance_path(weights).is_file():
            shutil.copyfile(provenance_path(weights), provenance_path(kept))
    load_pretrained_backbone(network, weights)
    state, own = read_weights(weights), network.state_dict()
    head = {key: state.get(key) for key in own if key.startswith("head.")}
    if all(value is not None and value.shape == own[key].shape for key, value in head.items()):
        network.load_state_dict(head, strict=False)
    else:
        logger.info("head: starts anew, because %s has it for another number of classes", weights)
    return network


def has_trained_head(network: SegmentationNetwork, weights: str | Path, annotating: bool) -> bool:
    """Whether an annotator's training is for the classes that the bundle was released with: its head is then adapted.

    Classes of the annotator's own start with a head of zeros, and are fitted anew to all saved labels every time.

    Args:
        network: as `start_network` returned it.
        weights: the file of the network in use; `released.pt` beside it decides.
        annotating: whether the training is an annotator's; False for any other.
    """
    if not annotating:
        return False
    state = read_weights(Path(weights).with_name(RELEASED))
    head = {key: value for key, value in network.state_dict().items() if key.startswith("head.")}
    same = all(key in state and state[key].shape == value.shape for key, value in head.items())
    return same and any(bool(state[key].any()) for key in head if key.endswith("weight"))
