"""Options of a training in MONAI Label's panel."""

from __future__ import annotations

from collections.abc import KeysView


class PanelOptions(dict):
    """Options that the panel shows, but that a request need not have.

    MONAI Label looks up every key of `displayable_configs` in a training request, and fails where a script's request
    lacks one. What is shown here is read elsewhere (`run_id` by MONAI Label itself): no key has to be looked up.
    """

    def keys(self) -> KeysView:  # type: ignore[override]
        return {}.keys()
