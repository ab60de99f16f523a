"""Put the weights of a training into a bundle, with the figures that its evaluation measured.

python -m scripts.adopt_weights mri_dense_ssl --weights out/pretrain/model.pt --scores out/scores/retrieval.csv \
    --licence cc-by-sa-4.0
"""

from __future__ import annotations

import sys
from pathlib import Path

import fire

from custom_components.errors import InputError
from custom_components.release import adopt_weights

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"


def adopt(
    bundle: str, weights: str, scores: str, licence: str, with_cases: bool = False, bundles_dir: str = str(BUNDLES)
) -> None:
    """Write models/model.pt and .json, and the record and figures in metadata.json and docs/README.md.

    Args:
        bundle: name of the bundle.
        weights: model.pt of a training, with model.json beside it.
        scores: metrics.csv or retrieval.csv, which the bundle's evaluate.json wrote for these weights.
        licence: of the weights, as the Hugging Face Hub spells it; that of the data may decide it.
        with_cases: also publish the scores of every case, under its file's name, and digests of the names of the scans
            that the weights have seen.
        bundles_dir: folder of the bundles.
    """
    folder = Path(str(bundles_dir)) / str(bundle)
    try:
        figures = adopt_weights(folder, Path(str(weights)), Path(str(scores)), str(licence), with_cases)
    except (InputError, OSError) as error:
        sys.exit(f"adopt_weights: {error}")
    for name, value in figures.items():
        print(f"{name:<32}{value:8.4f}")
    print(f"written to {folder}; read docs/README.md, then: python -m scripts.release {bundle} --output_dir dist")


if __name__ == "__main__":
    fire.Fire(adopt)
