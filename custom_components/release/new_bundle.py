"""A bundle of one's own from one of the package's: the same configs, with other settings and without its weights."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from custom_components.errors import InputError

from .checks import UNSAID, WORKFLOWS, name_fault
from .packing import SIBLING

logger = logging.getLogger(__name__)

# what is said of the bundle that is copied and not of the new one; a release asks for each
SEGMENTATION = "_segmentation"
SIZES = {"spacing", "crop_size", "base_channels", "num_scales"}
OWN_WORDS = ("name", "task", "description", "authors", "copyright", "data_source", "intended_use")
README = """# {name}

{unsaid}

Made from `{source}`, whose page says how to run it and what its settings mean. {differing}

Research only, not for clinical use.

## Released weights
"""


def new_bundle(source: Path, target: Path, settings: Mapping[str, Any], backbone: str | None = None) -> list[str]:
    """Write a copy of a bundle under another name, with its settings changed in every config that has them.

    Configs of other sizes to merge on these, such as `low_resolution.json`, are left out where they would override it.

    In `metadata.json` the classes and channels follow the settings, version and changelog begin anew, and what is said
    of the copied bundle's data, authors and use is emptied, which a release refuses until it is filled in.

    Args:
        source: folder of the bundle to copy; its weights and figures are not copied.
        target: folder of the new bundle, which must not exist.
        settings: name at the top of the configs -> value. With other `class_names`, `one_piece` is emptied where it is
            not given, which is told.
        backbone: the pre-training bundle beside `target` whose weights its trainings start from; else that of `source`.

    Returns:
        The fields of `metadata.json` that are to be filled in.

    Raises:
        InputError: no such bundle, a name that no bundle can have or that is taken, or a setting that `source` has not.
    """
    training = source / "configs" / "train.json"
    if not training.is_file():
        raise InputError(f"{source}: is no bundle to copy; name one that has configs/train.json")
    if fault := name_fault(target.name):
        raise InputError(fault)
    if source.name.endswith(SEGMENTATION) != target.name.endswith(SEGMENTATION):
        verb = "ends" if source.name.endswith(SEGMENTATION) else "does not end"
        raise InputError(f"{target.name}: the name of a bundle like {source.name} {verb} in {SEGMENTATION}; rename it")
    if target.exists():
        raise InputError(f"{target}: exists; give the new bundle another name")
    wanted = json.loads(json.dumps(dict(settings)))  # a tuple of a command line is a list in a config
    known = {name for workflow in WORKFLOWS for name in json.loads(training.with_stem(workflow).read_text())}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(f"{unknown[0]}: is no setting of {source.name}; they are at the top of {training}")
    for name in ("class_names", "one_piece"):
        if isinstance(wanted.get(name), str):  # a command line's single name
            wanted[name] = [wanted[name]]
    if "class_names" in wanted and "one_piece" in known and "one_piece" not in wanted:
        wanted["one_piece"] = []
        logger.warning("one_piece: empty now; name those of your classes of which the largest component alone is kept")
    if backbone and (fault := name_fault(backbone)):
        raise InputError(fault)
    texts, starts = {}, False
    for path in sorted((source / "configs").iterdir()):
        text = path.read_text()
        if path.stem in WORKFLOWS:
            text = _with_settings(text, wanted, path)
        elif path.name == "metadata.json":
            text = _own_metadata(json.loads(text), wanted)
        elif path.suffix == ".json" and SIZES & wanted.keys() & json.loads(text).keys():
            continue
        starts |= SIBLING.search(text) is not None
        texts[path.name] = SIBLING.sub(f"/../{backbone}/models/model.pt", text) if backbone else text
    if backbone and not starts:
        raise InputError(f"{source.name}: starts from no other bundle; leave out the backbone")
    differing = ", ".join(f"`{name}` {json.dumps(value)}" for name, value in wanted.items())
    (target / "configs").mkdir(parents=True)
    (target / "docs").mkdir()
    for name, text in texts.items():
        (target / "configs" / name).write_text(text)
    shutil.copyfile(source / "LICENSE", target / "LICENSE")
    stated = f"Its own settings: {differing}." if differing else "Its settings are the same."
    text = README.format(name=target.name, unsaid=UNSAID, source=source.name, differing=stated)
    (target / "docs" / "README.md").write_text(text)
    return list(OWN_WORDS)


def _with_settings(text: str, settings: Mapping[str, Any], path: Path) -> str:
    """The text of a config with other values at its top, of those settings that it has; all else stays as it is."""
    for name, value in settings.items():
        if name not in json.loads(text):
            continue
        match = re.search(rf'^    "{name}": (.*?),?$', text, flags=re.MULTILINE)
        changed = text[: match.start(1)] + json.dumps(value) + text[match.end(1) :] if match else text
        try:
            done = json.loads(changed)[name] == value
        except ValueError:
            done = False
        if not done:
            raise InputError(f"{name}: is more than a value in {path}; edit it in the copy")
        text = changed
    return text


def _own_metadata(metadata: dict[str, Any], settings: Mapping[str, Any]) -> str:
    metadata.update({name: "" for name in OWN_WORDS})
    metadata.update(version="0.1.0", changelog={"0.1.0": "first release"}, eval_metrics={})
    metadata.pop("weights", None)
    pred = metadata["network_data_format"]["outputs"]["pred"]
    if "class_names" in settings:
        names = dict(enumerate(["background", *settings["class_names"]]))
        metadata["label_classes"] = ", ".join(f"{value} = {name}" for value, name in names.items())
        pred["channel_def"] = {str(value): name for value, name in names.items()}
        pred["num_channels"] = len(settings["class_names"])
    elif pred["format"] == "features" and "num_scales" in settings:
        pred["num_channels"] = 32 * settings["num_scales"]
    return json.dumps(metadata, indent=4, ensure_ascii=False) + "\n"
