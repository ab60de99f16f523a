import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.image import imread

from custom_components.errors import InputError
from custom_components.visualization import COLOURS, overlay_figure, read_in_ras, save_overlay
from scripts.show import show


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


def test_the_right_of_the_patient_is_on_the_left_of_the_picture():
    image, label = np.zeros((20, 24, 16), np.float32), np.zeros((20, 24, 16), np.uint8)
    label[14:18, 10:14, 6:9] = 1  # RAS: high x is the right
    figure = overlay_figure(image, {"annotated": label}, ["Organ"])
    _, coronal, axial = figure.axes
    for axis in (coronal, axial):
        corner = axis.transAxes.inverted().transform(axis.transData.transform((16, 8)))
        assert corner[0] < 0.5
        assert [text.get_text() for text in axis.texts] == ["R"]


def test_what_is_black_around_the_scan_is_cut_off_and_no_label_is():
    image, label = np.full((20, 24, 16), -1000, np.float32), np.zeros((20, 24, 16), np.uint8)
    image[5:15, 6:18, 4:12] = 40
    label[10:12, 12:22, 6:8] = 1
    figure = overlay_figure(image, {"annotated": label}, ["Organ"])
    assert [axis.images[0].get_array().shape for axis in figure.axes] == [(8, 16), (8, 10), (16, 10)]


def written(path, shape, value=1):
    volume = np.zeros(shape, dtype=np.int16)
    volume[1:3, 1:3, 1:3] = value
    nib.save(nib.Nifti1Image(volume, np.diag([-1.0, 2.0, 1.0, 1.0])), path)
    return path


def test_the_command_line_draws_numbered_classes(tmp_path, capsys):
    scan, label = written(tmp_path / "scan.nii.gz", (6, 5, 4), -900), written(tmp_path / "scan_seg.nii.gz", (6, 5, 4))
    show(str(scan), str(label), str(tmp_path / "overlay.png"))
    assert "overlay.png" in capsys.readouterr().out
    assert imread(tmp_path / "overlay.png").size > 0


def test_files_that_cannot_be_drawn_are_named(tmp_path):
    scan, label = written(tmp_path / "scan.nii.gz", (6, 5, 4)), written(tmp_path / "other.nii.gz", (6, 5, 3))
    with pytest.raises(InputError, match=r"other.nii.gz: label is \(6, 5, 3\)"):
        show(str(scan), str(label), str(tmp_path / "overlay.png"))
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.diag([1.0, 2.0, 1.0, 1.0])), tmp_path / "apart.nii.gz")
    with pytest.raises(InputError, match="apart.nii.gz: lies up to 5 mm off .*scan.nii.gz"):
        show(str(scan), str(tmp_path / "apart.nii.gz"), str(tmp_path / "overlay.png"))
    with pytest.raises(InputError, match="absent.nii.gz: no such file"):
        show(str(scan), str(tmp_path / "absent.nii.gz"), str(tmp_path / "overlay.png"))
    (tmp_path / "broken.nii.gz").write_bytes(b"no NIfTI")
    with pytest.raises(InputError, match="broken.nii.gz: no readable NIfTI header"):
        show(str(tmp_path / "broken.nii.gz"), str(label), str(tmp_path / "overlay.png"))


@pytest.mark.parametrize(
    ("values", "class_names", "legend"),
    [
        ((1, 2, 3, 4), ["A", "B", "C"], {1: "A", 2: "B", 3: "C", 4: "class 4"}),
        ((1, 4), ["A", "B"], {1: "A", 2: "B", 4: "class 4"}),
        ((1,), ["A", "B"], {1: "A", 2: "B"}),
        ((255,), ["Tumour"], {1: "Tumour", 255: "class 255"}),
        ((2, 3), [], {2: "class 2", 3: "class 3"}),
    ],
)
def test_every_label_value_has_its_own_colour_in_the_picture_and_a_name_in_the_legend(values, class_names, legend):
    label = np.zeros((20, 20, 20), np.uint8)
    for place, value in enumerate(values):
        label[4 * place : 4 * place + 4] = value
    figure = overlay_figure(np.zeros(label.shape), {"annotated": label}, class_names)
    (drawn,) = figure.legends
    assert [text.get_text() for text in drawn.get_texts()] == list(legend.values())
    expected = {value: to_rgba(COLOURS[(value - 1) % len(COLOURS)]) for value in legend}
    for patch, value in zip(drawn.get_patches(), legend):
        np.testing.assert_allclose(patch.get_facecolor(), expected[value])
    overlay = figure.axes[2].get_images()[1]
    for value in values:
        np.testing.assert_allclose(overlay.cmap(overlay.norm(value - 1)), expected[value])


def test_a_scan_is_drawn_where_its_sform_says(tmp_path):
    """MONAI's own reader would take the absent qform, with steps of 1 mm, for right."""
    scan = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([-2.0, 3.0, 4.0, 1.0]))
    scan.header["qform_code"], scan.header["pixdim"][1:4] = 0, 1
    nib.save(scan, tmp_path / "scan.nii.gz")
    volume, affine = read_in_ras(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(affine, [[2, 0, 0, -2], [0, 3, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(volume, np.arange(24).reshape(2, 3, 4)[::-1])
