"""The command line of `python -m monai.bundle`: a setting that no config has is told, where MONAI takes it silently."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
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
    takers: tuple[Any, ...] = (monai.bundle.run, monai.bundle.run_workflow, monai.bundle.ConfigWorkflow.__init__)
    of_monai = {name for taker in takers for name in inspect.signature(taker).parameters} - {"override", "self"}
    require_known([name for name in given if name not in of_monai], [files] if isinstance(files, str) else files)


def require_known(names: Iterable[str], configs: Sequence[str | Path]) -> None:
    """Refuse settings that none of some configs has.

    Args:
        names: of the settings; of one such as `train#trainer#max_epochs` the top level is looked at.
        configs: the files.

    Raises:
        InputError: a line for each unknown one, with the most similar one there is.
    """
    known = known_settings(configs)
    unknown = [name for name in names if top_level(name) not in known]
    if unknown:
        read = ", ".join(dict.fromkeys(Path(file).name for file in configs))
        raise InputError("\n".join(_sentence(name, read, known) for name in unknown))


def known_settings(configs: Sequence[str | Path]) -> set[str]:
    """The names on the top level of configs."""
    return {top_level(name) for file in configs for name in ConfigParser.load_config_file(str(file))}


def top_level(name: str) -> str:
    """The top-level setting of `train#trainer#max_epochs`, also written with `::`."""
    return re.split("#|::", name.lstrip("+"))[0]


def _flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Name -> value of what fire would take as keyword arguments, under the names that it gives them."""
    flags: dict[str, Any] = {}
    for argument, after in zip(arguments, [*arguments[1:], ""]):
        found = FLAG.fullmatch(argument)
        if found:
            value = after if found["value"] is None else found["value"]
            flags[found["name"].replace("-", "_")] = DefaultParseValue(value)
    return flags


def _sentence(name: str, read: str, known: set[str]) -> str:
    similar = difflib.get_close_matches(top_level(name), sorted(known), 1)
    instead = (
        f"did you mean --{similar[0]}?" if similar else "its settings stand at the top of the file; leave this out"
    )
    return f"--{name}: no such setting in {read}; {instead}"
