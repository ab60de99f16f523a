"""The scans of an evaluation, where one that cannot be loaded does not cost the scores of the others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import Dataset, list_data_collate
from tqdm import tqdm

from custom_components.errors import InputError

from .folder import fault_of


class SoundScans:
    """Batches of one scan each; a scan that cannot be loaded is told in one sentence on stderr and left out.

    As `val_data_loader` of an evaluator with `epoch_length` the number of scans, and among its handlers: there it ends
    the epoch where the scans end, which ignite would otherwise begin anew.

    Args:
        dataset: its `data` are items of `read_datalist`, its transform is the preprocessing.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.faults: list[str] = []

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        self.faults = []
        for index, item in enumerate(self.dataset.data):
            try:
                scan = self.dataset[index]
            except Exception as error:  # whatever it is, the other scans are not to blame
                self.faults.append(fault_of(item, error))
                tqdm.write(self.faults[-1], file=sys.stderr)
            else:
                yield list_data_collate([scan])

    def attach(self, engine: Engine) -> None:
        """End the epoch of an engine where the scans end."""
        # not the method itself, which takes an engine for its `skip_epoch_completed`
        engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, lambda: engine.terminate_epoch())

    def require_all(self, scores: str | Path) -> None:
        """After the evaluation: put its table aside, as `incomplete_NAME`, where it lacks scans.

        Means over other scans are no figures to compare or to publish, but what was computed is kept.

        Args:
            scores: the table that the evaluation has written.

        Raises:
            InputError: scans were left out: how many were not, and a sentence for each that was.
        """
        if not self.faults:
            return
        scores = Path(scores)
        partial = scores.replace(scores.with_name(f"incomplete_{scores.name}"))
        done = f"{len(self) - len(self.faults)} of {len(self)} scans scored, in {partial}"
        raise InputError("\n".join([f"{done}; {len(self.faults)} could not be loaded:", *self.faults]))
