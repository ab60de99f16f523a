"""Write procedural CT or MRI phantoms with labels.

python -m scripts.phantoms --output_dir data/phantoms --modality mri --num 16 --seed 0
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import fire

from custom_components.data import write_phantoms


def phantoms(
    output_dir: str, modality: str = "mri", num: int = 16, seed: int = 0, shape: str | Sequence[int] = "small"
) -> None:
    """Write a data set of phantoms in the layout of the Medical Segmentation Decathlon.

    Args:
        output_dir: folder for imagesTr, labelsTr and dataset.json; phantoms that are there already are replaced.
        modality: ct or mri.
        num: number of scans.
        seed: another seed, other bodies.
        shape: tiny, small, large, or the voxels across, front to back, and along the body, such as 64,56,48.
    """
    try:
        cases = write_phantoms(str(output_dir), modality, num, seed, shape)
    except (ValueError, OSError) as error:
        sys.exit(f"phantoms: {error}")
    print(f"wrote {len(cases)} {modality.upper()} phantoms ({cases[0]} to {cases[-1]}) to {output_dir}")


if __name__ == "__main__":
    fire.Fire(phantoms)
