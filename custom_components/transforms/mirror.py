"""Mirroring a labelled scan without confusing left and right."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import Flip, MapTransform, RandomizableTransform

from custom_components.errors import InputError

# left and right in the name of an organ: LeftKidney, kidney_left, Kidney-R, l_kidney; not in Bright or cleft
SIDE = re.compile(r"Left|Right|LEFT|RIGHT|(?<![A-Za-z])(?:left|right)|(?<![^\W_])[lrLR](?![^\W_])")
# of the heart, whose sides are not each other's mirror image
CHAMBER = re.compile(r"ventric|atri|auric|heart|cardi|pulmon", re.IGNORECASE)
OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


def mirrored_pairs(class_names: Sequence[str]) -> list[list[str]]:
    """The pairs of classes whose names say that they are left and right of one organ, in the order of the classes.

    Args:
        class_names: such as RightKidney and LeftKidney, kidney_left and kidney_right, Kidney_R and Kidney_L. Chambers
            and vessels of the heart are in no pair: in a mirrored scan, each is still itself.
    """
    order = {name: index for index, name in enumerate(class_names)}
    partners = {name: _other_side(name) for name in class_names}
    return [
        [name, other]
        for name, other in partners.items()
        if order[name] < order.get(other, -1) and CHAMBER.search(name) is None
    ]


def _other_side(name: str) -> str:
    """The name with left and right exchanged, in capitals or not as it was."""

    def exchanged(match: re.Match[str]) -> str:
        other = OTHER_SIDE[match[0].lower()]
        return other.upper() if match[0].isupper() else other.capitalize() if match[0][0].isupper() else other

    return SIDE.sub(exchanged, name)


def mirrored_classes_order(class_names: Sequence[str], mirrored_classes: Sequence[Sequence[str]]) -> list[int]:
    """For each class, 0 to K - 1, the class that it is in a scan mirrored left to right.

    Args:
        class_names: K names.
        mirrored_classes: pairs of class names that are each other's mirror image; other classes stay what they are.

    Raises:
        InputError: a pair that is not two different class names, or a class in two pairs; or one that is named left or
            right and is in no pair, as if the organs of both sides were that class.
    """
    named = [name for pair in mirrored_classes for name in pair]
    paired = all(len(pair) == 2 for pair in mirrored_classes) and len(set(named)) == len(named)
    if not paired or not set(named) <= set(class_names):
        raise InputError(
            f"mirrored_classes must be pairs of different names out of {list(class_names)} but are "
            f"{list(mirrored_classes)}; name the left and right organs of your classes, or [] where there are none"
        )
    order = list(range(len(class_names)))
    for first, second in mirrored_classes:
        a, b = class_names.index(first), class_names.index(second)
        order[a], order[b] = b, a
    alone = [name for name in class_names if name not in named and _other_side(name) != name]
    if alone:
        raise InputError(
            f"mirrored_classes: {alone[0]} is in no pair, so that mirrored scans would make the other side {alone[0]} "
            "too; name its mirror image, or mirror nothing: --mirror_probability 0 in training"
        )
    return order


class RandMirrord(RandomizableTransform, MapTransform):
    """Mirror a scan left to right, and give the organs of either side the name that they then have.

    A mirrored right parotid gland looks like a left one. MONAI's `RandFlipd` alone would teach the network that it is a
    right one; here the label values of each pair of classes are exchanged, and so are their entries in `annotated`.

    Args:
        keys: images and labels (C, H, W, D), in RAS order, so that the first spatial axis runs from left to right.
        class_names: names of label values 1..K.
        mirrored_classes: pairs of class names, as in `mirrored_classes_order`.
        prob: probability to mirror.
        label_key: which of `keys` is the label.
        annotated_key: entry (K,) that says which classes are annotated (see `AnnotatedClassesd`); may be absent.
        allow_missing_keys: skip keys that are absent.

    Raises:
        InputError: as `mirrored_classes_order`, unless `prob` is 0 and nothing is ever mirrored.
    """

    def __init__(
        self,
        keys: KeysCollection,
        class_names: Sequence[str],
        mirrored_classes: Sequence[Sequence[str]] = (),
        prob: float = 0.5,
        label_key: Hashable = "label",
        annotated_key: Hashable = "annotated",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        order = mirrored_classes_order(class_names, mirrored_classes) if prob > 0 else list(range(len(class_names)))
        self.order = torch.tensor(order, dtype=torch.long)
        self.mirrored_value = torch.cat([self.order.new_zeros(1), self.order + 1])  # what label value k becomes
        self.label_key, self.annotated_key = label_key, annotated_key
        self.flip = Flip(spatial_axis=0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        for key in self.key_iterator(d):
            d[key] = self.flip(d[key])
            if key == self.label_key:
                # in place, so that a MetaTensor stays one
                d[key] = d[key].copy_(self.mirrored_value[d[key].long()])
        if self.annotated_key in d:
            d[self.annotated_key] = d[self.annotated_key][self.order]
        return d
