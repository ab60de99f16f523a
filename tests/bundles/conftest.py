"""Runs bundles on tiny phantoms with tiny networks: everything for real, only small."""

import os
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest

from custom_components.data import PHANTOM_CLASSES

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
# in single precision, so that the same is tested on every CPU
SMALL = {
    "spacing": [8.0, 8.0, 8.0],
    "crop_size": [16, 16, 16],
    "base_channels": 4,
    "num_scales": 3,
    "cpu_bfloat16": False,
}
SHORT = {"max_steps": 4, "steps_per_epoch": 2, "val_interval": 1, "scans_per_step": 2}
CLASSES = {"class_names": list(PHANTOM_CLASSES)}


def config_files(bundle, configs):
    return [str(BUNDLES / bundle / "configs" / f"{name}.json") for name in configs]


@pytest.fixture(scope="session")
def run_bundle():
    """Run a bundle in this process, with any settings overridden."""

    def run(bundle, *configs, **settings):
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
        monai.bundle.run(config_file=config_files(bundle, configs), bundle_root=str(BUNDLES / bundle), **settings)

    return run


@pytest.fixture(scope="session")
def command_line():
    """Run a bundle as a user does, in a process of its own; returns the finished process."""

    def run(bundle, *configs, launcher=("-m",), **settings):
        command = [sys.executable, "-W", "ignore", *launcher, "monai.bundle", "run"]
        command += ["--config_file", str(config_files(bundle, configs)), "--bundle_root", str(BUNDLES / bundle)]
        for key, value in settings.items():
            command += [f"--{key}", str(value)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)

    return run


@pytest.fixture(scope="session")
def pretrained(run_bundle, mri_phantoms, tmp_path_factory):
    """Output folder of a short pre-training on phantoms."""
    output = tmp_path_factory.mktemp("pretrained")
    run_bundle("mri_dense_ssl", "train", dataset_dir=mri_phantoms, output_dir=output, **SMALL, **SHORT)
    return output


@pytest.fixture(scope="session")
def segmenter(run_bundle, mri_phantoms, pretrained, tmp_path_factory):
    """Output folder of a short fine-tuning on phantoms."""
    output = tmp_path_factory.mktemp("segmenter")
    run_bundle(
        "hippocampus_mri_segmentation",
        "train",
        dataset_dir=mri_phantoms,
        output_dir=output,
        pretrained=pretrained / "model.pt",
        head_epochs=1,
        **SMALL,
        **SHORT,
        **CLASSES,
    )
    return output
