"""Inference on a folder of scans, where one bad scan does not stop the rest."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from ignite.engine import Events
from monai.data import Dataset, list_data_collate
from monai.engines import SupervisedEvaluator
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from custom_components.data.headers import reason_of
from custom_components.errors import InputError, find_input_error


class FolderInference:
    """Runs an evaluator on one scan after the other, with a progress bar and a summary.

    A scan that fails, while it is loaded, processed or saved, is told in one sentence on stderr, and the next one is
    taken. Scans whose fault `list_scans` has already found come first, so that they are told at once.

    Args:
        evaluator: applies the network and saves the result, in its postprocessing.
        dataset: its `data` are items of `list_scans`, its transform is the preprocessing.
        output_dir: where the evaluator saves; named in the summary.
    """

    def __init__(self, evaluator: SupervisedEvaluator, dataset: Dataset, output_dir: str | os.PathLike) -> None:
        self.evaluator, self.dataset, self.output_dir = evaluator, dataset, output_dir
        self._error: Exception | None = None

    def run(self) -> None:
        """Process every scan; then print how many there were.

        Raises:
            InputError: at the end, if any scan failed: how many did not, and a sentence for each that did.
        """
        items = self.dataset.data
        order = sorted(range(len(items)), key=lambda index: "fault" not in items[index])
        loader, length = self.evaluator.data_loader, self.evaluator.state.epoch_length
        level = self.evaluator.logger.level
        self.evaluator.logger.setLevel(logging.CRITICAL)  # it would log the errors that are told here
        failures = []
        try:
            # ignite ends a run that raised only if somebody takes the error; else the next run would do nothing
            with (
                self.evaluator.add_event_handler(Events.EXCEPTION_RAISED, self._take_error),
                tqdm(order, unit="scan", mininterval=1) as progress,
                logging_redirect_tqdm(),  # a warning about a scan gets a line of its own
            ):
                for index in progress:
                    progress.set_description(items[index]["case"])
                    try:
                        self._process(index)
                    except Exception as error:  # whatever it is, the other scans are not to blame
                        failures.append(fault_of(items[index], error))
                        progress.write(failures[-1], file=sys.stderr)
        finally:
            self.evaluator.data_loader, self.evaluator.state.epoch_length = loader, length
            self.evaluator.logger.setLevel(level)
        done = f"{len(items) - len(failures)} of {len(items)} scans done, results in {self.output_dir}"
        if failures:
            raise InputError("\n".join([f"{done}; {len(failures)} failed:", *failures]))
        print(done)

    def _process(self, index: int) -> None:
        """Load a scan and run the evaluator on it alone; raises whatever goes wrong."""
        self._error = None
        self.evaluator.data_loader = [list_data_collate([self.dataset[index]])]
        self.evaluator.state.epoch_length = 1
        self.evaluator.run()
        # the result is in its file; do not hold it while the next scan is loaded
        self.evaluator.state.batch = self.evaluator.state.output = None
        self.evaluator.data_loader = []
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _take_error(self, engine: Any, error: BaseException) -> None:
        if not isinstance(error, Exception):  # the user's Ctrl-C
            raise error
        self._error = error


def fault_of(item: Mapping[str, Any], error: Exception) -> str:
    """Why a scan failed, in a sentence that names its file."""
    told = find_input_error(error)
    if told is not None:
        return str(told)
    cause: BaseException = error
    while cause.__cause__ is not None:  # MONAI says which transform failed, its cause says why
        cause = cause.__cause__
    return f"{item['image']}: could not be processed ({type(cause).__name__}: {reason_of(cause)})"
