"""Write a bundle's network as ONNX, to run it without PyTorch.

python -m scripts.export bundles/hippocampus_mri_segmentation --output_dir out/onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import fire
from monai.bundle import ConfigParser

from custom_components.errors import InputError
from custom_components.networks import export_onnx, load_weights


def export(bundle: str, output_dir: str, weights: str = "") -> None:
    """Write `OUTPUT_DIR/model.onnx`: any size of image, float32, compared with PyTorch.

    The image must be prepared as `preprocessing` in the bundle's inference.json does it.

    Args:
        bundle: folder of the bundle.
        output_dir: folder for the file.
        weights: weight file; the bundle's own.
    """
    folder, path = Path(str(bundle)), Path(str(output_dir)) / "model.onnx"
    try:
        config = ConfigParser()
        if not (folder / "configs" / "inference.json").is_file():
            raise InputError(f"{folder}: is not the folder of a bundle, because it has no configs/inference.json")
        config.read_config(folder / "configs" / "inference.json")
        config["bundle_root"] = str(folder)
        if weights:
            config["weights"] = str(weights)
        network = load_weights(config.get_parsed_content("network_def"), config.get_parsed_content("weights"))
        size = config.get("crop_size") or config.get("roi_size")
        channels = int(network.backbone.in_channels)  # type: ignore[union-attr, arg-type]
        difference = export_onnx(network, path, size, channels)
    except (InputError, OSError) as error:
        sys.exit(f"export: {error}")
    print(f"wrote {path}: image (N, {channels}, H, W, D) of any size to pred, {difference:.1e} from PyTorch's")


if __name__ == "__main__":
    fire.Fire(export)
