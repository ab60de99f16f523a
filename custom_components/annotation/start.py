"""The network that an annotator's training starts from."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom_components.files import whole_file
from custom_components.networks import SegmentationNetwork, load_pretrained_backbone, provenance_path, read_weights

logger = logging.getLogger(__name__)

RELEASED = "released.pt"


def start_network(
    network: SegmentationNetwork,
    pretrained: str | Path | None,
    weights: str | Path,
    classes: Sequence[str],
    annotating: bool,
    settings: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
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
        settings, checkpoint: as for `load_pretrained_backbone`.

    Raises:
        WeightsError: as `load_pretrained_backbone`.
    """
    network.set_num_classes(len(classes))
    if not annotating:
        load_pretrained_backbone(network, pretrained, settings, checkpoint)
        return network
    weights = Path(weights)
    kept = weights.with_name(RELEASED)
    if weights.is_file() and not kept.exists():
        # the weights last: where they are, nothing is copied again
        for source, target in ((provenance_path(weights), provenance_path(kept)), (weights, kept)):
            if source.is_file():
                with whole_file(target) as partial:
                    shutil.copyfile(source, partial)
    load_pretrained_backbone(network, weights)
    head = _head_for(network, read_weights(weights))
    if head is not None:
        network.head.load_state_dict(head)
    else:
        logger.info("head: starts anew, because %s has it for another number of classes", weights)
    return network


def released_head(network: SegmentationNetwork, weights: str | Path, annotating: bool) -> dict[str, Tensor] | None:
    """The head that an annotator's probe is to stay near to; None where it is to be fitted anew.

    It is the released one, however often the annotator trained since, unless a fine-tuning changed the backbone: then
    it is the head in use. Classes of the annotator's own were released with a head of zeros, which is no head to keep.

    Args:
        network: as `start_network` returned it.
        weights: the file of the network in use; `released.pt` is beside it.
        annotating: whether the training is an annotator's; None comes for any other.

    Returns:
        The state dict of `network.head`.
    """
    if not annotating:
        return None
    used, released = read_weights(weights), read_weights(Path(weights).with_name(RELEASED))
    head = _head_for(network, released)
    if head is None or not any(bool(value.any()) for name, value in head.items() if name.endswith("weight")):
        return None
    backbone = [name for name in released if name.startswith("backbone.")]
    if all(name in used and torch.equal(used[name], released[name]) for name in backbone):
        return head
    return _head_for(network, used)


def _head_for(network: SegmentationNetwork, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The head in the state dict of a network, where it has the number of classes of `network`."""
    own = network.head.state_dict()
    head = {name: state.get(f"head.{name}") for name in own}
    complete = {name: value for name, value in head.items() if value is not None and value.shape == own[name].shape}
    return complete if len(complete) == len(own) else None
