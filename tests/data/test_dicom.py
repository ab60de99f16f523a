import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Orientationd, SaveImaged, Spacingd

from custom_components.data import (
    DataError,
    ExactNiftiWriter,
    LoadScan,
    LoadScand,
    list_scans,
    output_name,
    scan_grid,
    series_of,
)
from custom_components.transforms import CheckScand, LogitsToLabeld

from ..scan_files import (
    AXES,
    INTERCEPT,
    ORIGIN,
    SLOPE,
    SPACING,
    STRUCTURE_SET,
    ras_positions,
    rotation,
    slice_position,
    volume,
    write_dicom,
    write_mha,
    write_nrrd,
    write_series,
    write_slice,
)

CORNERS = np.array([(i, j, k) for i in (0, 6) for j in (0, 5) for k in (0, 4)])


@pytest.fixture
def series(tmp_path):
    """Files of a series of five slices, in the order of the slices."""
    return write_series(tmp_path / "series")


def write_scan(folder, kind):
    if kind == "dicom":
        write_series(folder / "1.2.840")
        return folder / "1.2.840", volume() * SLOPE + INTERCEPT
    write = {"nrrd": write_nrrd, "mha": write_mha}[kind]
    return write(folder / f"scan.v1.{kind}"), volume()


def fault_of(folder):
    with pytest.raises(DataError) as caught:
        scan_grid(folder)
    (line,) = str(caught.value).splitlines()
    assert str(folder) in line
    with pytest.raises(DataError):
        LoadScan()(folder)
    return line


@pytest.mark.parametrize("kind", ["nrrd", "mha", "dicom"])
def test_an_oblique_scan_is_read_where_it_was_written(tmp_path, kind):
    path, voxels = write_scan(tmp_path, kind)
    image = LoadScan(ensure_channel_first=True)(path)
    assert torch.equal(image.as_tensor(), torch.as_tensor(voxels[None], dtype=torch.float32))
    shape, affine = scan_grid(path)
    assert shape == (7, 6, 5)
    for found in (affine, image.affine.numpy()):
        np.testing.assert_allclose(nib.affines.apply_affine(found, CORNERS), ras_positions(CORNERS), atol=1e-4)


@pytest.mark.parametrize("kind", ["nrrd", "mha", "dicom"])
def test_a_label_lies_on_the_grid_of_the_scan_and_is_named_after_it(tmp_path, kind):
    """Through the orientation and spacing of a bundle: the label of the brighter voxels is where they are."""
    path, _ = write_scan(tmp_path, kind)
    blob = np.full((7, 6, 5), 0, np.int16)
    blob[4:, 3:, 2:] = 1000
    if kind == "dicom":
        write_series(path, blob)
    else:
        {"nrrd": write_nrrd, "mha": write_mha}[kind](path, blob)
    before = Compose([LoadScand("image"), CheckScand("image"), Orientationd("image", "RAS")])
    data = Spacingd("image", (0.5, 0.5, 0.5))(before(list_scans(path)[0]))
    data["pred"] = data["image"].as_tensor() - 500
    save = SaveImaged(
        "pred",
        output_dir=tmp_path / "out",
        output_postfix="seg",
        separate_folder=False,
        resample=False,
        print_log=False,
        writer=ExactNiftiWriter,
        output_name_formatter=output_name,
        output_dtype=torch.uint8,
    )
    Compose([LogitsToLabeld("pred"), save])(data)
    name = "1.2.840_seg.nii.gz" if kind == "dicom" else "scan.v1_seg.nii.gz"
    assert [file.name for file in (tmp_path / "out").iterdir()] == [name]
    label = nib.load(tmp_path / "out" / name)
    np.testing.assert_allclose(nib.affines.apply_affine(label.affine, CORNERS), ras_positions(CORNERS), atol=1e-4)
    assert (np.asarray(label.dataobj) == (blob > 0)).mean() > 0.95


def test_slices_are_ordered_by_position_not_by_name(series):
    assert [item.path for item in series_of(series[0].parent)] == [str(file) for file in series]
    assert series[0].name > series[1].name


def test_every_slice_has_its_own_rescale_slope(tmp_path, series):
    """As in PET: ITK alone would read all slices with the type of the first, here whole numbers."""
    content = series[-1].read_bytes()
    series[-1].write_bytes(content.replace(b"DS\x02\x002 ", b"DS\x02\x00.5"))
    expected = volume().astype(float) * SLOPE + INTERCEPT
    expected[..., -1] = volume()[..., -1] * 0.5 + INTERCEPT
    np.testing.assert_array_equal(LoadScan()(series[0].parent).numpy(), expected)


def test_files_that_are_no_images_do_not_belong_to_the_series(series):
    folder = series[0].parent
    write_dicom(folder / "structures.dcm", [((0x20, 0x0E), "UI", "1.9")], STRUCTURE_SET)
    write_dicom(folder / "DICOMDIR", [], "1.2.840.10008.1.3.10")
    (folder / "notes.txt").write_text("not DICOM")
    (folder / ".hidden").write_bytes(series[0].read_bytes())
    assert len(series_of(folder)) == 5
    write_dicom(folder.parent / "alone.dcm", [], STRUCTURE_SET)
    assert [item["case"] for item in list_scans(folder.parent)] == ["series"]


@pytest.mark.parametrize(("name", "kept"), [("IM000", 0), ("IM000.dcm", 0), ("IM000.dcm", 100), ("IM000.IMA", 131)])
@pytest.mark.parametrize("slice_index", [0, -1])
def test_a_broken_first_or_last_slice_is_named_though_the_others_are_complete(series, slice_index, name, kept):
    broken = series[slice_index].rename(series[0].with_name(name))
    broken.write_bytes(broken.read_bytes()[:kept])
    line = fault_of(series[0].parent)
    assert line.startswith(f"{broken}: a DICOM file was expected among the slices but this is")
    (item,) = list_scans(series[0].parent.parent)
    assert item["fault"] == line


def test_a_folder_without_dicom_says_so(tmp_path):
    assert "no DICOM image found" in fault_of(tmp_path)


def test_two_series_in_a_folder_are_named(series):
    write_slice(series[0].with_name("other"), volume()[..., 0], ORIGIN, series="1.2.4", description="Head")
    assert "one DICOM series was expected but there are 2 (Chest, Head)" in fault_of(series[0].parent)


@pytest.mark.parametrize("count", [3, 4, 5, 40])
def test_any_missing_slice_is_found_between_its_neighbours(tmp_path, count):
    for missing in {1, count // 2, count - 2}:
        files = write_series(tmp_path / str(missing), np.zeros((4, 4, count + 1), np.int16))
        files[missing].unlink()
        line = fault_of(tmp_path / str(missing))
        if count > 3:
            assert "a slice every 2.5 mm was expected but there is none for 5 mm" in line
            assert files[missing - 1].name in line and files[missing + 1].name in line
        else:  # of two distances, neither is the usual one
            assert "distance" in line


def test_an_uneven_slice_distance_is_a_fault_and_rounded_positions_are_not(tmp_path):
    for name, shift in {"uneven": 0.6, "rounded": 0.05}.items():
        files = write_series(tmp_path / name)
        write_slice(files[2], volume()[..., 2], slice_position(2) + AXES[:, 2] * shift)
    assert "varies from 1.9 to 3.1 mm" in fault_of(tmp_path / "uneven")
    assert scan_grid(tmp_path / "rounded")[0] == (7, 6, 5)


def test_a_tilted_gantry_is_a_fault(tmp_path):
    files = write_series(tmp_path / "tilted")
    for k, file in enumerate(files):
        write_slice(file, volume()[..., k], slice_position(k) + AXES[:, 1] * 0.5 * k)
    assert "shifted by up to 2 mm, as with a tilted gantry" in fault_of(tmp_path / "tilted")


def test_two_slices_at_one_position_are_a_fault(series):
    write_slice(series[0].with_name("again"), volume()[..., 0], slice_position(3))
    assert "one slice a position was expected but" in fault_of(series[0].parent)


@pytest.mark.parametrize(
    "other",
    [{"axes": rotation((0, 0, 0))}, {"spacing": SPACING * 1.1}, {"plane": np.zeros((7, 7))}],
    ids=["orientation", "spacing", "size"],
)
def test_a_slice_on_another_grid_is_a_fault(series, other):
    settings = {"plane": volume()[..., 2], **other}
    write_slice(series[2], position=slice_position(2), **settings)
    assert "slices of one size, spacing and orientation were expected" in fault_of(series[0].parent)


def test_a_single_slice_is_no_scan(series):
    for file in series[1:]:
        file.unlink()
    assert "two or more slices were expected" in fault_of(series[0].parent)
    assert "name the folder of its series" in fault_of(series[0])


@pytest.mark.parametrize(
    ("tag", "name"),
    [((0x20, 0x32), "ImagePositionPatient"), ((0x20, 0x37), "ImageOrientationPatient"), ((0x28, 0x30), "PixelSpacing")],
)
def test_a_header_without_geometry_is_a_fault(series, tag, name):
    write_slice(series[1], volume()[..., 1], slice_position(1), without=[tag])
    assert f"{series[1].name}: the DICOM header has no {name}" in fault_of(series[0].parent)


@pytest.mark.parametrize("kept", [200, -30])
def test_a_truncated_slice_is_named(series, kept):
    series[1].write_bytes(series[1].read_bytes()[:kept])
    assert series[1].name in fault_of(series[0].parent)


def test_several_frames_in_a_file_are_a_fault(series):
    """Rows are halved and the frames doubled, so that the voxels still fit."""
    frames = ((0x28, 0x08), "IS", "2")
    plane = np.concatenate([volume()[..., 0]] * 2, axis=1)
    write_slice(series[0], plane, ORIGIN)
    content = series[0].read_bytes()
    position = content.index(b"\x28\x00\x10\x00US")
    rows = b"\x28\x00\x10\x00US\x02\x00"
    content = content[:position].replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.5.1.4.1.1.7\0")
    rest = series[0].read_bytes()[position:].replace(rows + b"\x0c\x00", rows + b"\x06\x00", 1)
    head = b"\x28\x00\x08\x00IS\x02\x00" + frames[2].encode() + b" "
    series[0].write_bytes(content + head + rest)
    assert "one slice a file was expected but it holds 2 frames" in fault_of(series[0].parent)


@pytest.mark.parametrize("kind", ["nrrd", "mha", "dicom"])
def test_without_itk_the_command_that_installs_it_is_named(tmp_path, kind, monkeypatch):
    path, _ = write_scan(tmp_path, kind)
    monkeypatch.setitem(sys.modules, "itk", None)
    assert "run pip install 'itk-io" in fault_of(path)
