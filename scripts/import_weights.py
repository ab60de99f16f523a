"""Bring a predecessor's checkpoint into the form that the bundles use.

python -m scripts.import_weights vox2vec.pt weights/vox2vec.pt

Reads what vox2vec (16 channels x 6 scales) and the paper's reference implementation (32 x 5) publish or train: a
Lightning checkpoint or a plain state dict, `.ckpt`, `.pt` or `.safetensors`. The features equal the original's if the
images are prepared as there; vox2vec: CT clipped to [-1350, 1000] HU, scaled to [0, 1], 1 x 1 x 2 mm.
"""

from __future__ import annotations

import shlex
import sys

import fire

from custom_components.errors import InputError
from custom_components.networks import import_backbone


def import_weights(file: str, output: str, half: bool = False) -> None:
    """Write the backbone of a checkpoint as a weight file, for `--pretrained` and `load_backbone`.

    Args:
        file: the checkpoint; its architecture is read from its shapes, heads and projectors are skipped.
        output: file to write, ending in .pt or .safetensors; a .json with the SHA-256 comes to lie beside it.
        half: store half precision: half the size, features equal to about three digits instead of to rounding.
    """
    file, output = str(file), str(output)
    try:
        record = import_backbone(file, output, half)
    except (InputError, OSError) as error:
        sys.exit(f"import_weights: {error}")
    size = "--base_channels {base_channels} --num_scales {num_scales}".format(**record)
    skipped = record["skipped"]
    parts = ", ".join(sorted({key.split(".")[0] for key in skipped}))
    print("architecture: {base_channels} channels x {num_scales} scales, input channels {in_channels}".format(**record))
    print(f"entries: {record['entries']} matched, {len(skipped)} skipped{f' ({parts})' if skipped else ''}")
    print(f"wrote {output} ({record['precision']}), SHA-256 {record['sha256']}")
    print(f"use it with: --pretrained {shlex.quote(output)} {size}")


if __name__ == "__main__":
    fire.Fire(import_weights)
