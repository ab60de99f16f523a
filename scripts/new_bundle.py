"""A bundle of your own: a copy of one of ours for other classes, voxels or sizes, to train and publish.

python -m scripts.new_bundle pancreas_ct_segmentation --like btcv_ct_segmentation --class_names "['Pancreas']"
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fire

from custom_components.errors import InputError
from custom_components.release import new_bundle
from custom_components.transforms import mirrored_pairs, told_pairs

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"


def new(name: str, like: str, backbone: str | None = None, bundles_dir: str = str(BUNDLES), **settings: Any) -> None:
    """Write the new bundle beside the others; its settings then need not be given again with every command.

    Args:
        name: of the new bundle: small letters, digits and underscores; that of a segmentation ends in _segmentation.
        like: bundle to copy, without its weights.
        backbone: pre-training bundle that its trainings start from; else that of the copied one.
        bundles_dir: folder of the bundles.
        settings: what is different, as on the command line of a training, such as --spacing "[1.5,1.5,1.5]".
    """
    folder = Path(str(bundles_dir))
    try:
        empty = new_bundle(folder / str(like), folder / str(name), settings, backbone)
    except (InputError, OSError) as error:
        sys.exit(f"new_bundle: {error}")
    classes = settings.get("class_names")
    if classes is not None:
        pairs = mirrored_pairs([classes] if isinstance(classes, str) else list(classes))
        print(f"Where a scan is mirrored left to right, {told_pairs(pairs)}; --mirrored_classes names other pairs.")
    print(f"{folder / name}: written; before a release, fill in {', '.join(empty)} of configs/metadata.json, and")
    print("the first sentence of docs/README.md. Train and score it with its own configs, then scripts.adopt_weights.")


if __name__ == "__main__":
    fire.Fire(new)
