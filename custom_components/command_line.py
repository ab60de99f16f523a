"""The command line of `python -m monai.bundle`: a setting that no config has is told, where MONAI takes it silently."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from custom_components.errors import InputError

FLAG = re.compile(r"--?(?P<name>[A-Za-z_][^=]*)(=(?P<value>.*))?", re.DOTALL)


def refuse_unknown_settings(arguments: Sequence[str] | None = None) -> None:
    """Refuse a setting of the command line that none of its configs has, before anything expensive starts.

    MONAI would add it to the config, where nothing reads it: a mistyped `--num_label 4` would train with all scans. The
    bundles' configs call it at their start.

    Args:
        arguments: of the program, `python -m monai.bundle run ...`; None for those of this process. Those of any other
            program, such as a server that runs a bundle, are not looked at.

    Raises:
        InputError: a line for each unknown setting, with the most similar one there is.
    """
    program, *arguments = sys.argv if arguments is None else arguments
    if Path(program).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return
    given = _flags(arguments)
    if "args_file" in given:
        given = {**ConfigParser.load_config_file(str(given["args_file"])), **given}
    files = given.get("config_file")
    if files is None:
        return
    settings = {_top(name) for name in ConfigParser.load_config_files(files)}
    known = settings | set(inspect.signature(monai.bundle.run).parameters) - {"override"}
    unknown = [name for name in given if _top(name) not in known]
    if unknown:
        listed = [files] if isinstance(files, str) else files
        read = ", ".join(Path(file).name for file in listed)
        raise InputError("\n".join(_sentence(name, read, settings) for name in unknown))


def _flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Name -> value of what fire would take as keyword arguments, under the names that it gives them."""
    flags: dict[str, Any] = {}
    for argument, after in zip(arguments, [*arguments[1:], ""]):
        found = FLAG.fullmatch(argument)
        if found:
            value = after if found["value"] is None else found["value"]
            flags[found["name"].replace("-", "_")] = DefaultParseValue(value)
    return flags


def _top(name: str) -> str:
    """The top-level setting of `train#trainer#max_epochs`, also written with `::`."""
    return re.split("#|::", name.lstrip("+"))[0]


def _sentence(name: str, read: str, settings: set[str]) -> str:
    similar = difflib.get_close_matches(_top(name), sorted(settings), 1)
    instead = (
        f"did you mean --{similar[0]}?" if similar else "its settings stand at the top of the file; leave this out"
    )
    return f"--{name}: no such setting in {read}; {instead}"
