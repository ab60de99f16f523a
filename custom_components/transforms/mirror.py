"""Mirroring a labelled scan without confusing left and right."""

from __future__ import annotations

import itertools
import logging
import re
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import Flip, MapTransform, RandomizableTransform

from custom_components.errors import InputError

logger = logging.getLogger(__name__)

# words for left, each with those for right: English, German, French, Spanish, Portuguese, Italian, Latin
WORDS = (
    ("left", "right"),
    *((f"link{end}", f"recht{end}") for end in ("s", "e", "er", "es", "en", "em")),
    *((left, right) for left in ("gauche", "gauches") for right in ("droite", "droites", "droit", "droits")),
    *((f"izquierd{end}", f"derech{end}") for end in ("o", "a", "os", "as")),
    *((f"esquerd{end}", f"direit{end}") for end in ("o", "a", "os", "as")),
    *((f"sinistr{end}", f"destr{end}") for end in ("o", "a", "i", "e")),
    ("sinister", "dexter"),
    *((f"sinistr{end}", f"dextr{end}") for end in ("a", "um", "i", "ae")),
)
# their letters, which may mean something else where the other side is not there too
LETTERS = (("l", "r"), ("li", "re"), ("lt", "rt"), ("sin", "dex"), ("sin", "dx"), ("sx", "dx"), ("izq", "der"))


def _opposites(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    both = [*pairs, *((right, left) for left, right in pairs)]
    return {word: [other for one, other in both if one == word] for word, _ in both}


OTHER_WORDS, OTHER_LETTERS = _opposites(WORDS), _opposites(LETTERS)
SURELY_SIDES = OTHER_WORDS | {letter: OTHER_LETTERS[letter] for letter in "lr"}


def _any_of(words: Sequence[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


# in the name of an organ: LeftKidney, kidney_left, NiereLinks, Kidney-R, l_kidney; not in Bright or cleft
_small, _first, _capitals = (
    _any_of([form(word) for word in OTHER_WORDS]) for form in (str.lower, str.title, str.upper)
)
_letters = _any_of([form(word) for word in OTHER_LETTERS for form in (str.lower, str.title, str.upper)])
SIDE = re.compile(
    rf"Left|Right|LEFT|RIGHT|(?<![A-Za-z])(?:left|right)|(?:{_first})(?![a-z])|(?:{_capitals})(?![A-Z])"
    rf"|(?<![A-Za-z])(?:{_small})(?![a-z])|(?<![^\W_])(?:{_letters})(?![^\W_])"
    # LKidney, KidneyL: no sign of a side alone
    r"|(?P<joined>(?<![A-Za-z])[LR](?=[A-Z][a-z])|(?<=[a-z])[LR](?![A-Za-z]))"
)
# of the heart, whose sides are not each other's mirror image; pulmon is the lung in Spanish
CHAMBER = re.compile(
    "ventric|ventrik|atri|auric|oreillette|vorhof|kammer|heart|cardi|herz|coeur|corazon|coracao|cuore|coronar"
    "|pulmona|polmona",
    re.IGNORECASE,
)


def mirrored_pairs(class_names: Sequence[str]) -> list[list[str]]:
    """The pairs of classes whose names say that they are left and right of one organ, in the order of the classes.

    Args:
        class_names: such as RightKidney and LeftKidney, kidney_left and kidney_right, Kidney_R and Kidney_L, NiereLinks
            and NiereRechts. Chambers and vessels of the heart are in no pair: in a mirrored scan, each is still itself.
    """
    pairs: list[list[str]] = []
    paired: set[str] = set()
    for index, name in enumerate(class_names):
        others = [other for other in class_names[index + 1 :] if other in _other_sides(name) and other not in paired]
        if others and name not in paired and CHAMBER.search(_without_accents(name)) is None:
            pairs.append([name, others[0]])
            paired.update(pairs[-1])
    return pairs


def _other_sides(name: str, words: Mapping[str, Sequence[str]] = OTHER_WORDS | OTHER_LETTERS) -> list[str]:
    """What the name may be with left and right exchanged, in capitals or not as it was; none where it has no side."""
    parts, last = [[""]], 0
    for match in SIDE.finditer(name):
        text = match[0]
        others = [] if match["joined"] and words is SURELY_SIDES else words.get(text.lower(), [])
        like = str.upper if text.isupper() else str.capitalize if text[0].isupper() else str.lower
        if others:
            parts += [[name[last : match.start()]], [like(other) for other in others]]
            last = match.end()
    return ["".join((*chosen, name[last:])) for chosen in itertools.product(*parts)] if last else []


def _without_accents(name: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))


def told_pairs(pairs: Sequence[Sequence[str]]) -> str:
    """Which classes a mirrored scan exchanges, in words."""
    exchanged = ", ".join(f"{first} with {second}" for first, second in pairs)
    return f"exchanged are {exchanged}, no other class" if pairs else "no class is exchanged with another"


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
    alone = [name for name in class_names if name not in named and _other_sides(name, SURELY_SIDES)]
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
        if prob > 0:
            order = mirrored_classes_order(class_names, mirrored_classes)
            logger.info("mirrored left to right, with probability %g: %s", prob, told_pairs(mirrored_classes))
        else:
            order = list(range(len(class_names)))
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
