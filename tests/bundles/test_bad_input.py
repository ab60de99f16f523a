"""What a user sees on the command line when the input is wrong: one sentence that names the file, and no traceback."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from custom_components.data import PHANTOM_CLASSES
from custom_components.errors import find_input_error
from custom_components.networks import SegmentationNetwork, save_weights

from .conftest import CLASSES, SHORT, SMALL

pytestmark = pytest.mark.slow
SEGMENTER = "hippocampus_mri_segmentation"
SEGMENTATION = {**SMALL, **SHORT, **CLASSES, "pretrained": "none"}


@pytest.fixture
def dataset(mri_phantoms, tmp_path):
    """A copy of the phantoms that a test may spoil."""
    return shutil.copytree(mri_phantoms, tmp_path / "data")


def complaint(done):
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr[-3000:]
    return done.stderr[done.stderr.index("error: ") :]


def test_damaged_scans_are_named_before_training_starts(command_line, dataset, tmp_path):
    """NaN voxels, a constant image and a truncated file at once: three faults, three lines."""
    scans = sorted((dataset / "imagesTr").glob("*.nii.gz"))
    for scan, value in zip(scans, (np.nan, 0.0)):
        image = nib.load(scan)
        volume = np.asarray(image.dataobj).astype(np.float32)
        volume[:] = 7.0
        volume[0, 0, 0] = value if np.isnan(value) else 7.0
        nib.save(nib.Nifti1Image(volume, image.affine), scan)
    content = scans[2].read_bytes()
    scans[2].write_bytes(content[: len(content) // 2])
    done = command_line("mri_dense_ssl", "train", dataset_dir=dataset, output_dir=tmp_path / "o", **SMALL, **SHORT)
    text = complaint(done)
    held_out = [scan.name for scan in scans[:3] if scan.name not in text]
    assert len(held_out) <= 1 and len(text.strip().splitlines()) >= 2
    assert not (tmp_path / "o" / "checkpoints").exists()


def test_a_damaged_scan_does_not_cost_the_scores_of_the_others(command_line, dataset, tmp_path):
    scans = sorted((dataset / "imagesTr").glob("*.nii.gz"))
    content = scans[0].read_bytes()
    scans[0].write_bytes(content[: len(content) // 2])
    output = tmp_path / "o"
    network = SegmentationNetwork(len(PHANTOM_CLASSES), base_channels=4, num_scales=3)
    weights = save_weights(network, tmp_path / "model.pt")
    settings = {**SMALL, **CLASSES, "weights": weights, "split": "all"}
    text = complaint(command_line(SEGMENTER, "evaluate", dataset_dir=dataset, output_dir=output, **settings))
    assert scans[0].name in text and "5 of 6 scans scored" in text
    rows = (output / "incomplete_metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == 5 * 6 and not any(row.startswith("phantom_mri_000") for row in rows)
    assert sorted(file.name for file in output.iterdir()) == ["incomplete_metrics.csv"]


def refusal(run_bundle, name, config, **settings):
    """The sentence that ends a command, run in this process."""
    with pytest.raises(Exception) as caught:
        run_bundle(name, config, **settings)
    return str(find_input_error(caught.value))


def test_label_and_image_of_different_shape(run_bundle, dataset, tmp_path):
    label = sorted((dataset / "labelsTr").glob("*.nii.gz"))[0]
    image = nib.load(label)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), label)
    text = refusal(run_bundle, SEGMENTER, "train", dataset_dir=dataset, output_dir=tmp_path / "o", **SEGMENTATION)
    assert label.name in text and "but label is" in text


def test_classes_that_are_not_those_of_the_data(run_bundle, dataset, tmp_path):
    listing = json.loads((dataset / "dataset.json").read_text())
    listing["labels"]["1"] = "Heart"
    (dataset / "dataset.json").write_text(json.dumps(listing))
    text = refusal(run_bundle, SEGMENTER, "train", dataset_dir=dataset, output_dir=tmp_path / "o", **SEGMENTATION)
    assert "Heart" in text and "Liver" in text


def test_an_empty_folder(run_bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    settings = {**SMALL, **SHORT, "dataset_dir": tmp_path / "empty", "output_dir": tmp_path / "o"}
    assert "empty: no scan found" in refusal(run_bundle, "mri_dense_ssl", "train", **settings)


def test_weights_that_do_not_exist(run_bundle, dataset, tmp_path):
    settings = {"dataset_dir": dataset, "output_dir": tmp_path / "o", "weights": tmp_path / "none.pt"}
    text = refusal(run_bundle, SEGMENTER, "inference", **settings, **SMALL, **CLASSES)
    assert "none.pt: no such weight file" in text
