"""Inference on the formats that users have, all in one folder, as on the command line."""

import nibabel as nib
import numpy as np
import pytest

from custom_components.data import scan_grid

from ..scan_files import volume, write_mha, write_nrrd, write_series
from .conftest import CLASSES, SMALL

pytestmark = pytest.mark.slow
BUNDLE = "hippocampus_mri_segmentation"
GOOD = ["1.2.840.7", "a", "b", "c"]


@pytest.fixture
def folder(tmp_path):
    """A NIfTI, an NRRD, an MHA, a DICOM series and a truncated NIfTI; the good ones have random voxels."""
    scans = tmp_path / "scans"
    voxels = volume((20, 18, 16))
    write_series(scans / "1.2.840.7", voxels)
    nib.save(nib.Nifti1Image(voxels, np.diag([-1, 1, 2, 1])), scans / "a.nii.gz")
    write_nrrd(scans / "b.nrrd", voxels)
    write_mha(scans / "c.mha", voxels)
    content = (scans / "a.nii.gz").read_bytes()
    (scans / "d.nii.gz").write_bytes(content[: len(content) // 2])
    return scans


def paths_of(folder):
    return [folder / name for name in ("1.2.840.7", "a.nii.gz", "b.nrrd", "c.mha")]


def test_a_bad_file_in_a_folder_is_named_and_all_others_are_segmented(command_line, segmenter, folder, tmp_path):
    settings = {**SMALL, **CLASSES, "weights": segmenter / "model.pt", "output_dir": tmp_path / "o"}
    done = command_line(BUNDLE, "inference", dataset_dir=folder, **settings)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [f"{case}_seg.nii.gz" for case in GOOD]
    for path, case in zip(paths_of(folder), GOOD):
        label = nib.load(tmp_path / "o" / f"{case}_seg.nii.gz")
        shape, affine = scan_grid(path)
        assert label.shape == shape and label.get_data_dtype() == np.uint8
        np.testing.assert_allclose(label.affine, affine, atol=1e-4)
    summary = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert summary[0] == f"error: 4 of 5 scans done, results in {tmp_path / 'o'}; 1 failed:"
    (line,) = summary[1:]
    assert line.startswith(f"{folder / 'd.nii.gz'}: could not be read")
    (folder / "d.nii.gz").unlink()
    done = command_line(BUNDLE, "inference", dataset_dir=folder, **settings)
    assert done.returncode == 0 and "4 of 4 scans done" in done.stdout, done.stderr[-3000:]


def test_a_series_with_a_missing_slice_alone_fails_in_one_sentence(command_line, segmenter, tmp_path):
    write_series(tmp_path / "series", volume((20, 18, 16)))[7].unlink()
    settings = {**SMALL, **CLASSES, "weights": segmenter / "model.pt", "output_dir": tmp_path / "o"}
    done = command_line(BUNDLE, "inference", dataset_dir=tmp_path / "series", **settings)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "0 of 1 scans done" in done.stderr and "there is none for 5 mm between" in done.stderr
    assert not list(tmp_path.glob("o/*"))


def test_features_of_every_format_are_named_after_their_case(run_bundle, pretrained, folder, tmp_path):
    (folder / "d.nii.gz").unlink()
    settings = {key: SMALL[key] for key in ("spacing", "base_channels", "num_scales")}
    settings |= {"weights": pretrained / "model.pt", "roi_size": [16, 16, 16]}
    run_bundle("mri_dense_ssl", "inference", dataset_dir=folder, output_dir=tmp_path / "o", **settings)
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [f"{case}_features.nii.gz" for case in GOOD]
