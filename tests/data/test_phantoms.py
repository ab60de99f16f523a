import hashlib
import json
import time

import fire
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from custom_components.data import (
    PHANTOM_CLASSES,
    DataError,
    class_names_of,
    make_phantom,
    phantom_affine,
    read_datalist,
    write_phantoms,
)
from scripts.phantoms import phantoms


def centres(label, affine):
    """Centre of mass of each class in the patient's RAS frame, mm."""
    found = ndimage.center_of_mass(label > 0, label, range(1, len(PHANTOM_CLASSES) + 1))
    return dict(zip(PHANTOM_CLASSES, nib.affines.apply_affine(affine, np.array(found)), strict=True))


def sizes(label, affine):
    """Volume of each class, ml."""
    counts = np.bincount(label.ravel(), minlength=len(PHANTOM_CLASSES) + 1)[1:]
    return dict(zip(PHANTOM_CLASSES, counts * abs(np.linalg.det(affine)) / 1000, strict=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_every_phantom_has_all_organs_at_the_default_size(modality, seed):
    image, label, affine = make_phantom(modality, seed)
    assert image.shape == label.shape == (96, 80, 72)
    assert image.dtype == np.float32 and label.dtype == np.uint8 and affine.shape == (4, 4)
    assert np.isfinite(image).all()
    assert np.bincount(label.ravel(), minlength=7).min() >= 50
    assert label.max() == len(PHANTOM_CLASSES)


@pytest.mark.parametrize("seed", range(3))
def test_organs_are_where_they_belong_in_the_patient(seed):
    _, label, affine = make_phantom("CT", seed, (48, 40, 36), (7.2, 6.2, 7.6))
    where = centres(label, affine)
    assert where["Spleen"][0] < -20 < 20 < where["Liver"][0]  # NIfTI: +x is the patient's right
    assert where["LeftKidney"][0] < -30 and where["RightKidney"][0] > 30
    assert where["Bladder"][2] < where["LeftKidney"][2] < where["Liver"][2]
    assert where["LeftKidney"][1] < where["Liver"][1]  # +y is the front
    volume = sizes(label, affine)
    assert 300 < volume["Liver"] < 2500 and 30 < volume["Spleen"] < 400 and 30 < volume["LeftKidney"] < 400


def test_organs_differ_in_shape_size_and_place_between_seeds():
    volumes, places = [], []
    for seed in range(6):
        _, label, affine = make_phantom("MRI", seed, (48, 40, 36), (7.2, 6.2, 7.6))
        volumes.append(list(sizes(label, affine).values()))
        places.append(list(centres(label, affine).values()))
    volumes, places = np.array(volumes), np.array(places)
    assert (volumes.std(0) / volumes.mean(0) > 0.05).all()
    assert (places.std(0).max(-1) > 1.5).all()


def test_the_same_seed_gives_the_same_voxels_and_the_same_body_in_both_modalities():
    first, label, _ = make_phantom("CT", 3, (48, 40, 36), (7.2, 6.2, 7.6))
    again, _, _ = make_phantom("ct", 3, (48, 40, 36), (7.2, 6.2, 7.6))
    _, label_mri, _ = make_phantom("MRI", 3, (48, 40, 36), (7.2, 6.2, 7.6))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(label, label_mri)


@pytest.mark.parametrize("axcodes", ["LPS", "PIR", "LSA"])
def test_orientation_changes_the_array_and_not_the_body(axcodes):
    shape, spacing = (48, 40, 36), (7.2, 6.2, 7.6)
    _, plain, affine = make_phantom("CT", 1, shape, spacing)
    axes = nib.orientations.axcodes2ornt(axcodes)[:, 0].astype(int)
    turned_shape = [shape[a] for a in axes]
    turned_affine = phantom_affine(turned_shape, [spacing[a] for a in axes], axcodes)
    assert "".join(nib.aff2axcodes(turned_affine)) == axcodes
    _, turned, _ = make_phantom("CT", 1, turned_shape, affine=turned_affine)
    back = nib.as_closest_canonical(nib.Nifti1Image(turned, turned_affine))
    np.testing.assert_allclose(back.affine, affine, atol=1e-5)
    assert (np.asarray(back.dataobj) == plain).mean() > 0.9999  # positions are rounded to single precision


def test_an_oblique_scan_shows_the_same_organs_at_the_same_places():
    _, label, affine = make_phantom("MRI", 2)
    oblique = phantom_affine((90, 84, 80), (3.9, 3.3, 3.7), "LAS", (8, -5, 9))
    assert np.abs(oblique[:3, :3]).min() > 0.01
    _, seen, _ = make_phantom("MRI", 2, (90, 84, 80), affine=oblique)
    for name, place in centres(label, affine).items():
        tolerance = 8 if name == "Aorta" else 2.5  # the aorta leaves the field of view
        assert np.linalg.norm(place - centres(seen, oblique)[name]) < tolerance, name


def test_ct_is_in_hounsfield_units():
    image, label, affine = make_phantom("CT", 0)
    assert image.min() >= -1024 and 400 < image.max() < 3072
    assert abs(np.median(image[:3]) + 1000) < 20  # air at the side
    for name, low, high in (("Liver", 80, 120), ("Spleen", 95, 135), ("Bladder", -5, 35), ("Aorta", 100, 150)):
        assert low < np.median(image[label == PHANTOM_CLASSES.index(name) + 1]) < high, name
    liver = ndimage.binary_erosion(label == 1, iterations=2)
    assert 10 < image[liver].std() < 35
    assert ((image > -900) & (image < -700)).sum() > 10000  # lungs


def test_mri_has_another_contrast_a_scale_of_its_own_and_a_bias_field():
    medians = []
    for seed in range(4):
        image, label, _ = make_phantom("MRI", seed, (48, 40, 36), (7.2, 6.2, 7.6))
        assert image.min() >= 0
        medians.append([np.median(image[label == k]) for k in range(1, 7)])
        assert medians[-1][0] > medians[-1][1] > medians[-1][5]  # liver, spleen, bladder
        fat = np.percentile(image, 97)
        assert medians[-1][0] < fat
    livers = np.array(medians)[:, 0]
    assert livers.max() / livers.min() > 1.3


def test_no_threshold_finds_an_organ_but_its_surroundings_are_not_the_same():
    image, label, _ = make_phantom("CT", 4)
    for value in (1, 2, 3, 4):
        inside = image[ndimage.binary_erosion(label == value)]
        low, high = np.percentile(inside, [5, 95])
        found = (image > low) & (image < high)
        assert (label[found] == value).mean() < 0.6
        ring = ndimage.binary_dilation(label == value, iterations=3) & (label == 0)
        assert abs(np.median(image[ring]) - np.median(inside)) > 15


def test_a_small_phantom_takes_less_than_a_second():
    start = time.thread_time()  # not the clock on the wall: other programs may be running
    make_phantom("CT", 0)
    assert time.thread_time() - start < 1


def test_extreme_grids_work():
    for shape, spacing in (((1, 1, 1), (3, 3, 3)), ((48, 40, 1), (7, 6, 7)), ((5, 3, 30), (60, 80, 9))):
        image, label, _ = make_phantom("MRI", 0, shape, spacing)
        assert image.shape == label.shape == shape


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="'PET'"):
        make_phantom("PET", 0)
    with pytest.raises(ValueError, match="three positive numbers"):
        make_phantom("CT", 0, (10, 10))
    with pytest.raises(ValueError, match="invertible"):
        make_phantom("CT", 0, (4, 4, 4), affine=np.zeros((4, 4)))


def test_written_phantoms_are_a_data_set_without_fault(mri_phantoms, ct_phantoms):
    for folder, modality in ((mri_phantoms, "MRI"), (ct_phantoms, "CT")):
        items = read_datalist(folder, list(PHANTOM_CLASSES))
        assert [item["case"] for item in items] == [f"phantom_{modality.lower()}_{i:03d}" for i in range(6)]
        assert class_names_of(folder) == list(PHANTOM_CLASSES)
        content = json.loads((folder / "dataset.json").read_text())
        assert content["modality"] == {"0": modality} and content["licence"] == "CC0, procedural"
        headers = [nib.load(item["image"]) for item in items]
        assert len({nib.aff2axcodes(scan.affine) for scan in headers}) > 1
        types = {str(scan.get_data_dtype()) for scan in headers}
        assert types == {"int16"} if modality == "CT" else types <= {"int16", "uint16", "float32"} and len(types) > 1
        for item, scan in zip(items, headers, strict=True):
            label = nib.load(item["label"])
            assert label.get_data_dtype() == np.uint8
            voxels = np.asarray(label.dataobj)
            assert set(np.unique(voxels)) == set(range(7))
            where = centres(voxels, label.affine)
            assert where["Spleen"][0] < -20 < 20 < where["Liver"][0]
            np.testing.assert_allclose(scan.get_qform(), scan.get_sform(), atol=1e-3)
            rotation = scan.affine[:3, :3] / nib.affines.voxel_sizes(scan.affine)
            assert np.degrees(np.arccos(np.abs(rotation).max(0))).max() < 15
            shape, spacing = np.array(scan.shape), nib.affines.voxel_sizes(scan.affine)
            assert 240 < (shape * spacing).min() and (shape * spacing).max() < 380


def test_scan_i_does_not_depend_on_the_number_of_scans_and_files_are_reproducible(tmp_path, mri_phantoms):
    write_phantoms(tmp_path, "mri", 2, size="tiny")
    for part in ("imagesTr", "labelsTr"):
        for index in range(2):
            name = f"phantom_mri_{index:03d}.nii.gz"
            digests = [hashlib.sha256((f / part / name).read_bytes()).hexdigest() for f in (tmp_path, mri_phantoms)]
            assert digests[0] == digests[1]


def test_phantoms_of_ct_and_mri_sets_are_different_patients(mri_phantoms, ct_phantoms):
    def volumes(folder):
        scans = [nib.load(item["label"]) for item in read_datalist(folder)]
        return [sizes(np.asarray(scan.dataobj), scan.affine)["Liver"] for scan in scans]

    assert len(np.unique(np.round(volumes(mri_phantoms) + volumes(ct_phantoms)))) == 12


def test_writing_again_replaces_phantoms_and_never_another_data_set(tmp_path):
    write_phantoms(tmp_path / "p", "CT", 3, size=(16, 14, 12))
    assert write_phantoms(tmp_path / "p", "CT", 1, seed=5, size=(16, 14, 12)) == ["phantom_ct_000"]
    assert len(list((tmp_path / "p").rglob("*.nii.gz"))) == 2
    assert len(read_datalist(tmp_path / "p")) == 1
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "dataset.json").write_text('{"name": "mine"}')
    with pytest.raises(DataError, match="not made of phantoms"):
        write_phantoms(tmp_path / "own", "CT", 1)
    assert (tmp_path / "own" / "dataset.json").read_text() == '{"name": "mine"}'
    for folder, name in (("plain", "phantom_ct_001.nii.gz"), ("p", "phantom_site3_2021.nii.gz")):
        scan = tmp_path / folder / "imagesTr" / name
        scan.parent.mkdir(parents=True, exist_ok=True)
        scan.write_bytes(b"somebody's")
        with pytest.raises(DataError, match=f"{name}: belongs to a data set that is not made of phantoms"):
            write_phantoms(tmp_path / folder, "CT", 1)
        assert scan.read_bytes() == b"somebody's"


def test_wrong_sizes_and_numbers_are_refused_before_anything_is_written(tmp_path):
    for kwargs, text in (
        ({"size": "huge"}, "tiny, small, large"),
        ({"size": (4, 4)}, "three positive numbers"),
        ({"size": 7}, "three positive numbers"),
        ({"num": 0}, "at least 1"),
        ({"modality": "xray"}, "xray"),
    ):
        with pytest.raises(ValueError, match=text):
            write_phantoms(tmp_path / "p", **({"modality": "CT", "num": 1} | kwargs))
    assert not (tmp_path / "p").exists()


def test_the_command_line_writes_and_says_where(tmp_path, capsys):
    arguments = f"--output_dir {tmp_path / 'p'} --num 2 --shape 16,14,12 --modality ct"
    fire.Fire(phantoms, command=arguments)
    assert capsys.readouterr().out == f"wrote 2 CT phantoms (phantom_ct_000 to phantom_ct_001) to {tmp_path / 'p'}\n"
    assert len(read_datalist(tmp_path / "p", labelled=False)) == 2


def test_the_command_line_fails_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, text in (({"modality": "pet"}, "phantoms: modality must be"), ({"num": 0}, "phantoms: num must be")):
        # a text as the exit code is printed to stderr, and the status is 1
        with pytest.raises(SystemExit, match=text):
            phantoms(tmp_path / "p", **arguments)
    with pytest.raises(SystemExit, match="phantoms: .*file"):
        phantoms(tmp_path / "file")
