"""Check bundles, and pack each with its code for everybody else.

python -m scripts.release --output_dir dist
"""

from __future__ import annotations

import sys
from pathlib import Path

import fire

from custom_components.errors import InputError
from custom_components.release import release_bundles

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"


def release(*names: str, output_dir: str, url: str = "", bundles_dir: str = str(BUNDLES)) -> None:
    """Write `NAME_vVERSION.zip` of each bundle, SHA256SUMS and model_info.json.

    Args:
        names: bundles; none: every one that has models/model.pt.
        output_dir: folder for the releases; those that are there already are listed too.
        url: address under which the folder will be served, for model_info.json.
        bundles_dir: folder of the bundles.
    """
    try:
        archives = release_bundles(Path(str(bundles_dir)), Path(str(output_dir)), [str(name) for name in names], url)
    except (InputError, OSError) as error:
        sys.exit(f"release: {error}")
    print(f"{len(archives)} released, listed in {output_dir}/SHA256SUMS and model_info.json")


if __name__ == "__main__":
    fire.Fire(release)
