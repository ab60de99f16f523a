"""Errors that are the input's, not the program's: told in a sentence, without a traceback."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from monai.apps.utils import get_logger


class InputError(ValueError):
    """Something that the user gave cannot be used; the message is a sentence, or one a line for several faults.

    It names the file, what was expected, what came, and what to do.
    """


def find_input_error(error: BaseException | None) -> InputError | None:
    """The `InputError` in a chain of causes, if there is one; MONAI wraps what its components raise."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def report_plainly() -> None:
    """From now on, end the program on an uncaught `InputError` with its sentence instead of a traceback.

    For command lines: the bundles' configs call it first of all. Ctrl-C ends it with a sentence too; any other error
    keeps its traceback.
    """
    sys.excepthook = _report
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    # MONAI's handler of an engine's errors writes past the root; its own function makes the logger as it wants it
    get_logger("monai.handlers.StatsHandler").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record is other than the error of an engine that an `InputError` or Ctrl-C ends, told at the end."""
    error = sys.exc_info()[1]
    plain = isinstance(error, KeyboardInterrupt) or find_input_error(error) is not None
    return not (plain and record.levelno >= logging.ERROR)


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    found = find_input_error(error)
    if found is not None:
        print(f"error: {found}", file=sys.stderr)
    elif issubclass(kind, KeyboardInterrupt):
        print("stopped: a training goes on from its last checkpoint with the same command", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
