"""The model card of a released bundle: README.md of its repository on the Hugging Face Hub.

All of it comes from the bundle's metadata.json and docs/README.md; nothing is measured, and no figure is written, here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from custom_components.delivery import file_digest
from custom_components.errors import InputError

from .links import seen_from_root


def hub_library() -> ModuleType:
    """The package huggingface_hub, which only publishing needs.

    Raises:
        InputError: it is not installed.
    """
    try:
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError(
            "publishing needs the package huggingface_hub, which is not installed; "
            "pip install 'huggingface_hub>=1,<3' safetensors"
        ) from error
    return huggingface_hub


def model_card(folder: Path, repo: str) -> str:
    """The text of README.md, with the Hub's YAML header.

    Args:
        folder: an unzipped release, with all weights that are to be uploaded.
        repo: `OWNER/REPOSITORY`, for the commands.

    Raises:
        InputError: the licence of the weights, or the measured figures beside them, are not stated.
    """
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    weights = metadata.get("weights", {}).get("models/model.pt", {})
    licence = weights.get("license")
    if not licence:
        raise InputError(
            f"{folder.name}/configs/metadata.json: weights, models/model.pt has no license; state that of the weights "
            "as the Hub spells it, such as cc-by-sa-4.0"
        )
    introduction, figures = _from_documents(folder)
    name, version = folder.name, metadata["version"]
    digests = "\n".join(
        f"| `models/{path.name}` | `{file_digest(path)}` |"
        for path in sorted((folder / "models").iterdir())
        if path.suffix in (".pt", ".safetensors")
    )
    references = "\n".join(f"* {reference}" for reference in metadata["references"])
    return f"""---
{_header(metadata, weights, name)}
---

# {name}

{metadata["description"]}. A [MONAI](https://monai.io) bundle, version {version} ({metadata["changelog"][version]}).

{introduction}

## Intended use and limits

{metadata["intended_use"]} This is not a medical device. The figures below hold for the data that they were measured
on; on other scanners, protocols and patients, measure before you rely on it.

## How to use

    python -m monai.bundle download --name {name} --source huggingface_hub --repo {repo} --version v{version} \\
        --bundle_dir models
    python -m monai.bundle run --config_file models/{name}/configs/inference.json --bundle_root models/{name} \\
        --dataset_dir scans --output_dir out

The bundle brings its own code; it needs the packages that `configs/metadata.json` lists, and the download
`huggingface_hub`. The backbone in Python, from inside `models/{name}`:

    from custom_components import load_backbone
    backbone = load_backbone(".")

[docs/README.md](docs/README.md) has every command and setting; the next section is taken from it.
`{name}_v{version}.zip` is the same bundle as one archive, with its hash in `SHA256SUMS`.

{figures}

| file | SHA-256 |
| --- | --- |
{digests}

`model.safetensors` holds the tensors of `model.pt`.

## Data and licence

* Data: {metadata["data_source"]}
* Weights: {licence}
* Code: Apache-2.0, see [LICENSE](LICENSE)
* Copyright: {metadata["copyright"]}

## Citation

{references}
"""


def _header(metadata: dict[str, Any], weights: dict[str, Any], name: str) -> str:
    """The Hub's YAML: what its search finds, and the measured Dice where metadata.json has it."""
    hub = hub_library()
    data_format = metadata["network_data_format"]
    is_segmentation = data_format["outputs"]["pred"]["format"] == "segmentation"
    task = "image-segmentation" if is_segmentation else "image-feature-extraction"
    folders = weights.get("data") or metadata["task"]
    dataset = ", ".join(PurePosixPath(path).name for path in ([folders] if isinstance(folders, str) else folders))
    results = [
        hub.EvalResult(
            task_type=task,
            dataset_type=re.sub(r"\W+", "-", dataset).lower(),
            dataset_name=dataset,
            metric_type="dice",
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in metadata["eval_metrics"].items()
        if "dice" in metric.lower()
    ]
    card = hub.ModelCardData(
        license=weights["license"],
        library_name="monai",
        tags=["monai", "medical", data_format["inputs"]["image"]["modality"].lower()],
        pipeline_tag=task,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


def _from_documents(folder: Path) -> tuple[str, str]:
    """From docs/README.md: what stands before the first section, and the section of the weights with their figures."""
    text = (folder / "docs" / "README.md").read_text()
    introduction, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    found = [section for section in sections if "weights" in section.splitlines()[0].lower()]
    if not found or not re.search(r"^\| *-+", found[0], flags=re.MULTILINE):
        raise InputError(
            f"{folder.name}/docs/README.md: has no section 'Released weights' with a table of figures; weights are "
            "published only with measured figures beside them"
        )
    introduction = re.sub(r"\A# .*\n", "", introduction)
    return seen_from_root(introduction).strip(), seen_from_root(found[0]).strip()
