import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from custom_components.visualization import overlay_figure, save_overlay


def test_a_label_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="predicted: label is"):
        overlay_figure(np.zeros((4, 4, 4)), {"predicted": np.zeros((4, 4, 3))}, ["A"])


def test_planes_go_through_the_middle_of_the_labels_and_show_their_colours(tmp_path):
    image = np.random.default_rng(0).normal(size=(20, 24, 16)).astype(np.float32)
    label = np.zeros(image.shape, dtype=np.uint8)
    label[2:8, 3:9, 4:9] = 1
    affine = np.diag([-2.0, -1.0, 3.0, 1.0])
    for name, volume in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(volume, affine), tmp_path / f"{name}.nii.gz")
    labels = {"annotated": tmp_path / "label.nii.gz", "again": tmp_path / "label.nii.gz"}
    path = save_overlay(tmp_path / "image.nii.gz", labels, ["Organ", "Other"], tmp_path / "pictures" / "overlay.png")
    pixels = imread(path)[..., :3]
    coloured = np.abs(pixels.max(-1) - pixels.min(-1)) > 0.2
    assert coloured.mean() > 0.01
    columns = np.array_split(coloured, 3, axis=1)
    assert all(part.any() for part in columns)
