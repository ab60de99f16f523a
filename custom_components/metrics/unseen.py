"""Whether scores are of scans that the weights have not seen: neither labelled nor, in a pre-training, without labels.

A split by names holds the same scans out for as long as the data stay the same. Where scans were added, or weights come
from elsewhere, only the record beside the weights knows what they have seen.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from custom_components.data import case_name
from custom_components.networks import read_record

logger = logging.getLogger(__name__)

RECORDED_AS = "seen_scans"


def seen_scans(items: Iterable[Mapping[str, Any]], start: str | Path | None = None) -> str:
    """What the record of a training says of the scans that it sees, those included that its start has seen.

    Args:
        items: the scans, with `case`, and `patient` where several scans are of one; an annotator's with `image` alone.
        start: the weight file that the training starts from; None or "none" for none.

    Returns:
        Eight hexadecimal digits of the SHA-256 of every case and every patient, sorted, with a space between. Names
        cannot be read from it, but who guesses one can check it.
    """
    seen = {digest for item in items for digest in _digests_of(item)}
    if start is not None:
        seen |= _recorded(start)
    return " ".join(sorted(seen))


def seen_among(items: Iterable[Mapping[str, Any]], weights: str | Path) -> list[str]:
    """The cases whose name, or whose patient's, is one that weights have seen; none where their record does not say.

    Args:
        items: as in `seen_scans`.
        weights: a weight file with its record beside it.
    """
    seen = _recorded(weights)
    return [str(item["case"]) for item in items if seen.intersection(_digests_of(item))]


def warn_of_seen(items: Iterable[Mapping[str, Any]], weights: str | Path) -> None:
    """Log a warning where scans that are to be scored have names that the weights have seen."""
    items = list(items)
    found = seen_among(items, weights)
    if found:
        named = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        logger.warning(
            "%s: %d of the %d scans have the names of scans that these weights were trained or pre-trained on (%s); if "
            "they are the same, their scores are not those of unseen scans",
            weights,
            len(found),
            len(items),
            named,
        )


def _digests_of(item: Mapping[str, Any]) -> set[str]:
    # the scans of an annotator come without names of their own
    names = {str(item[key]) for key in ("case", "patient") if key in item} or {case_name(item["image"])}
    return {hashlib.sha256(name.encode()).hexdigest()[:8] for name in names}


def _recorded(weights: str | Path) -> set[str]:
    record = read_record(weights)
    return set(str(record.get(RECORDED_AS, "")).split()) if isinstance(record, dict) else set()
