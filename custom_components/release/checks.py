"""What must hold of a bundle before it is released.

MONAI's schema of metadata.json is downloaded by `monai.bundle.verify_metadata`, and is not part of its package; so that
a release can be made offline, what the MONAI Bundle specification and the model zoo's checks ask for is listed here.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np

from custom_components.data import make_phantom
from custom_components.delivery import file_digest
from custom_components.errors import InputError
from custom_components.networks.weight_files import RECORDED_AS, differing_settings
from custom_components.provenance import absolute_paths

MAX_WEIGHTS = 100_000_000  # bytes; what code hosts take as one file, and the paper's network in half precision
# of evaluate.json and inference.json: what must be as it was in training
TAUGHT = ("spacing", "intensity_range", "intensity_percentiles", "base_channels", "num_scales", "head", "class_names")
WORKFLOWS = ("train", "evaluate", "inference")
UNSAID = "WHAT IT IS, IN A SENTENCE."  # in the README of a new bundle
OWN = "give such weights a bundle of their own: python -m scripts.new_bundle"
REQUIRED = (
    "LICENSE",
    "docs/README.md",
    "configs/logging.conf",
    "configs/metadata.json",
    "configs/multi_gpu_train.json",
    *(f"configs/{name}.json" for name in WORKFLOWS),
    "models/model.pt",
    "models/model.json",
)
# what else may be in a bundle; anything else was left there by a run, and may be somebody's scans
ALLOWED = re.compile(
    r"LICENSE|configs/[\w-]+\.(json|conf)|docs/[\w-]+\.(md|txt|csv|json|png|svg|jpg)|"
    r"models/(model|pretraining)\.(pt|json|safetensors|safetensors\.json)"
)
METADATA: dict[str, type] = {
    "schema": str,
    "version": str,
    "changelog": dict,
    "monai_version": str,
    "pytorch_version": str,
    "numpy_version": str,
    "required_packages_version": dict,
    "supported_apps": dict,
    "name": str,
    "task": str,
    "description": str,
    "authors": str,
    "copyright": str,
    "data_source": str,
    "data_type": str,
    "intended_use": str,
    "references": list,
    "eval_metrics": dict,
    "network_data_format": dict,
}
TENSOR: dict[str, type] = {
    "type": str,
    "format": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}


def bundle_files(folder: Path) -> list[str]:
    """The files of a bundle by their relative path, sorted; without hidden ones and compiled Python."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(f.as_posix() for f in files if not any(part.startswith((".", "__pycache__")) for part in f.parts))


def name_fault(name: str) -> str:
    """Why a bundle cannot have this name, in a sentence; empty where it can."""
    # MONAI takes what follows _v for the version
    if re.fullmatch(r"[a-z][a-z0-9_]*", name) is None or "_v" in name:
        return f"{name}: a bundle's name has small letters, digits and underscores, and no '_v'; rename it"
    return ""


def check_bundle(folder: Path) -> dict[str, Any]:
    """Check name, files, metadata and weights of a bundle; returns its metadata.

    Raises:
        InputError: a sentence a line, one for every fault.
    """
    name = folder.name
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no bundle of that name")
    faults = []
    if fault := name_fault(name):
        faults.append(fault)
    files = bundle_files(folder)
    faults += [f"{name}/{file}: is missing; every bundle has it" for file in REQUIRED if file not in files]
    faults += [
        f"{name}/{file}: is not part of a bundle; remove it, or keep it elsewhere"
        for file in files
        if ALLOWED.fullmatch(file) is None
    ]
    contents = {}
    for file in files:
        if file.endswith(".json"):
            try:
                contents[file] = json.loads((folder / file).read_text())
            except ValueError as error:
                faults.append(f"{name}/{file}: is not JSON ({error})")
    metadata = contents.get("configs/metadata.json", {})
    if metadata:
        faults += [f"{name}/configs/metadata.json: {fault}" for fault in _metadata_faults(metadata)]
    record = contents.get("models/model.json", {})
    faults += [f"{name}/{fault}" for fault in _weight_faults(folder, metadata, record)]
    faults += [f"{name}/{fault}" for fault in setting_faults(folder, record)]
    records = {file: content for file, content in contents.items() if not file.startswith("configs/")}
    faults += [f"{name}/{fault}" for file, content in records.items() for fault in place_faults(file, content)]
    if faults:
        raise InputError("\n".join(faults))
    return metadata


def _wrong_fields(content: Any, fields: dict[str, type], where: str = "") -> Iterator[str]:
    for key, kind in fields.items():
        if not isinstance(content, dict) or key not in content:
            yield f"has no {where}{key}; it must be of type {kind.__name__}"
        elif not isinstance(content[key], kind):
            yield f"{where}{key} must be of type {kind.__name__}, but is {content[key]!r}"
        elif kind is str and not content[key]:
            yield f"{where}{key} is empty; fill it in"


def _metadata_faults(metadata: dict[str, Any]) -> Iterator[str]:
    wrong = list(_wrong_fields(metadata, METADATA))
    yield from wrong
    if wrong:
        return
    version = metadata["version"]
    if re.fullmatch(r"\d+\.\d+\.\d+", version) is None:
        yield f"version must be three numbers such as 0.1.0, but is {version!r}"
    if version not in metadata["changelog"]:
        yield f"changelog has no entry {version!r}; say what is new in it"
    tensors = (("inputs", "image", {**TENSOR, "modality": str}), ("outputs", "pred", TENSOR))
    for direction, tensor, fields in tensors:
        content = metadata["network_data_format"].get(direction, {}).get(tensor)
        yield from _wrong_fields(content, fields, f"network_data_format.{direction}.{tensor}.")


def _weight_faults(folder: Path, metadata: dict[str, Any], record: dict[str, Any]) -> Iterator[str]:
    for file in ("models/model.pt", "models/pretraining.pt"):
        size = (folder / file).stat().st_size if (folder / file).is_file() else 0
        if size > MAX_WEIGHTS:
            yield f"{file}: has {size / 1e6:.1f} MB; at most {MAX_WEIGHTS / 1e6:.0f} MB are released"
    weights, readme = folder / "models" / "model.pt", folder / "docs" / "README.md"
    if not weights.is_file():
        return
    found = file_digest(weights)
    stated = {
        "models/model.json": record.get("sha256"),
        "configs/metadata.json": metadata.get("weights", {}).get("models/model.pt", {}).get("sha256"),
    }
    for file, sha256 in stated.items():
        if sha256 != found:
            says = f"{sha256[:12]}..." if sha256 else "nothing"
            yield f"{file}: says {says} where the SHA-256 of models/model.pt is {found}; correct it"
    if readme.is_file() and found not in readme.read_text():
        yield f"docs/README.md: does not name {found}, the SHA-256 of models/model.pt; correct it"
    if readme.is_file() and UNSAID in readme.read_text():
        yield f"docs/README.md: still has {UNSAID!r}; write that sentence"


def place_faults(file: str, content: Any) -> Iterator[str]:
    """Where a record of a training or of scores, published as `file`, names places of one machine."""
    for key in ("data", "pretrained", "command", "weights"):
        for path in absolute_paths(str((content if isinstance(content, dict) else {}).get(key) or "")):
            yield f"{file}: {key} names a path of one machine, {path}; scripts.adopt_weights cuts it to its last part"


def setting_faults(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    """Where the configs or metadata.json of a bundle are for another network than the record of a training."""
    for workflow in ("evaluate", "inference"):
        settings = _read_json(folder / "configs" / f"{workflow}.json")
        given = {name: settings[name] for name in TAUGHT if name in settings and not _is_computed(settings[name])}
        for name, value in differing_settings(record, given).items():
            yield f"configs/{workflow}.json: has {name} {given[name]}, but the weights were trained with {value}; {OWN}"
    metadata = _read_json(folder / "configs" / "metadata.json")
    channels = metadata.get("network_data_format", {}).get("outputs", {}).get("pred", {}).get("channel_def", {})
    taught, names = record.get(RECORDED_AS["class_names"]), list(channels.values())[1:]
    if taught and names != taught:
        yield f"configs/metadata.json: channel_def has classes {names}, the weights were trained for {taught}; {OWN}"


def _is_computed(value: Any) -> bool:
    return isinstance(value, dict) or str(value).startswith(("$", "@"))


def _read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is missing or damaged, which is another fault."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_network(folder: Path) -> None:
    """`monai.bundle.verify_net_in_out` of every workflow: the network takes and gives what metadata.json says.

    Raises:
        InputError: it does not.
    """
    level = logging.root.manager.disable
    logging.disable(logging.INFO)  # verify_net_in_out lists its arguments
    try:
        for workflow in WORKFLOWS:
            config = folder / "configs" / f"{workflow}.json"
            metadata = folder / "configs" / "metadata.json"
            monai.bundle.verify_net_in_out("network_def", str(metadata), str(config), device="cpu", any=20)
    except Exception as error:  # whatever the config raises, it is the bundle's fault
        raise InputError(f"{config}: its network_def does not do what metadata.json says: {error}") from error
    finally:
        logging.disable(level)


def try_inference(folder: Path, metadata: dict[str, Any], scratch: Path) -> None:
    """Run a packed bundle's inference on a phantom, from elsewhere and without any other copy of its code.

    Args:
        folder: an unzipped release.
        scratch: an empty folder.

    Raises:
        InputError: it fails, or what it writes does not fit the scan.
    """
    # the process runs elsewhere
    folder, scratch = folder.resolve(), scratch.resolve()
    name, output = folder.name, scratch / "output"
    settings = json.loads((folder / "configs" / "inference.json").read_text())
    modality = "ct" if metadata["network_data_format"]["inputs"]["image"]["modality"] == "CT" else "mri"
    image, _, affine = make_phantom(modality, 0, shape=(40, 40, 32), spacing=tuple(settings["spacing"]))
    scan = scratch / "phantom.nii.gz"
    nib.save(nib.Nifti1Image(image, affine), scan)
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"]
    command += ["--config_file", str(folder / "configs" / "inference.json"), "--bundle_root", str(folder)]
    command += ["--dataset_dir", str(scan), "--output_dir", str(output)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
    written = sorted(output.glob("phantom_*.nii.gz"))
    if done.returncode or not written:
        raise InputError(f"{name}: its inference on a phantom failed:\n{done.stderr[-2000:]}")
    result = nib.Nifti1Image.from_filename(written[0])
    values = np.asarray(result.dataobj)
    pred = metadata["network_data_format"]["outputs"]["pred"]
    if pred["format"] == "segmentation":
        fits = result.shape == image.shape and np.allclose(result.affine, affine, atol=1e-3)
        fits = fits and values.max() <= pred["num_channels"]
    else:
        fits = result.shape[3:] == (pred["num_channels"],) and bool(np.isfinite(values).all())
    if not fits:
        raise InputError(
            f"{name}: {written[0].name}, made from a phantom of shape {image.shape}, has shape {result.shape}"
        )
