"""Errors that are the input's, not the program's: told in a sentence, without a traceback."""

from __future__ import annotations

import sys
from types import TracebackType


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

    For command lines: the bundles' configs call it first of all. Any other error keeps its traceback.
    """
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    found = find_input_error(error)
    if found is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        print(f"error: {found}", file=sys.stderr)
