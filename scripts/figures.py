"""Draw the pictures of the documentation: `python -m scripts.figures`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from matplotlib.figure import Figure

from custom_components.data import make_phantom
from custom_components.errors import InputError
from custom_components.transforms import RandBezierIntensity, RandInPaint, RandLocalShuffle

DOCS = Path(__file__).resolve().parent.parent / "bundles" / "mri_dense_ssl" / "docs"


def augmentations(output: str = str(DOCS / "augmentations.png"), seed: int = 3) -> None:
    """The effect of each local augmentation on an MRI phantom: an axial slice of a 128 x 128 x 32 crop at 2 mm.

    Args:
        output: file of the picture.
        seed: seed of the phantom and of the augmentations.
    """
    image, _, _ = make_phantom("mri", seed, shape=(160, 128, 32), spacing=(2.0, 2.0, 2.0))
    low, high = np.percentile(image, [1, 99.99])
    crop = torch.from_numpy(np.clip((image[16:144] - low) / (high - low), 0, 1)[None])
    transforms: dict[str, list[Any]] = {
        "local pixel shuffling": [RandLocalShuffle(prob=1.0)],
        "non-linear intensity": [RandBezierIntensity(prob=1.0)],
        "in-painting": [RandInPaint(prob=1.0)],
        "all three": [RandLocalShuffle(prob=1.0), RandBezierIntensity(prob=1.0), RandInPaint(prob=1.0)],
    }
    figure = Figure(figsize=(12, 2.8), layout="constrained")
    axes = figure.subplots(1, 1 + len(transforms))
    pictures = {"crop": crop}
    for name, chain in transforms.items():
        result = crop.clone()
        for offset, transform in enumerate(chain):
            result = transform.set_random_state(seed + offset)(result)
        pictures[name] = torch.as_tensor(result)
    for axis, (name, volume) in zip(axes, pictures.items()):
        axis.imshow(volume[0, :, :, 16].numpy().T, cmap="gray", vmin=0, vmax=0.8, origin="lower")
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()
    figure.savefig(output, dpi=90)
    print(f"wrote {output}")


if __name__ == "__main__":
    try:
        fire.Fire(augmentations)
    except InputError as error:
        sys.exit(f"error: {error}")
