from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components.errors import InputError
from custom_components.transforms import CheckLabeld, CheckScan, CheckScand


def scan(shape=(1, 4, 5, 6)) -> torch.Tensor:
    return torch.arange(int(np.prod(shape))).view(shape).float()


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.half, torch.Tensor.short, MetaTensor])
def test_a_good_scan_comes_back_as_the_same_object(convert):
    image = convert(scan())
    assert CheckScan()(image) is image


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        (scan((1, 4, 5)), ["2D image", "(1, 4, 5)"]),
        (scan((1, 4, 5, 6, 7)), ["array of 5 axes", "(1, 4, 5, 6, 7)"]),
        (scan((3, 4, 5, 6)), ["3 channels", "channels=3"]),
        (torch.zeros(1, 4, 0, 6), ["empty"]),
        (torch.full((1, 4, 5, 6), 7), ["every voxel has the value 7"]),
        (torch.full((1, 4, 5, 6), -0.5), ["every voxel has the value -0.5"]),
    ],
)
def test_a_bad_scan_is_refused_in_one_sentence_that_names_its_file(image, parts):
    with pytest.raises(ValueError) as caught:
        CheckScan()(MetaTensor(image, meta={"filename_or_obj": "folder/case_012.nii.gz"}))
    message = str(caught.value)
    assert message.startswith("folder/case_012.nii.gz: ") and "\n" not in message
    assert all(part in message for part in parts), message


def test_nan_and_infinite_voxels_are_counted():
    image = scan()
    image[0, 0, 0, :2] = float("nan")
    image[0, 3, 4, 5] = -float("inf")
    with pytest.raises(ValueError, match="3 of 120 voxels are NaN or infinite"):
        CheckScan()(image)


def test_several_channels_pass_where_they_are_expected():
    CheckScan(channels=3)(scan((3, 4, 5, 6)))
    with pytest.raises(ValueError, match="1 channels came"):
        CheckScan(channels=3)(scan())


def test_an_image_without_a_file_is_named_by_the_name_key():
    with pytest.raises(ValueError, match="^case_7: "):
        CheckScand("image", name_key="case")({"image": torch.zeros(1, 4, 4, 4), "case": "case_7"})
    with pytest.raises(ValueError, match="^image: "):
        CheckScand("image")({"image": np.zeros((1, 4, 4, 4))})


def test_the_dictionary_form_leaves_every_entry_as_it_is():
    data = {"image": MetaTensor(scan()), "label": torch.zeros(1), "case": "a"}
    checked = CheckScand("image", name_key="case")(data)
    assert checked.keys() == data.keys() and all(checked[key] is data[key] for key in data)


def ct(low, high):
    return np.linspace(low, high, 60).reshape(1, 3, 4, 5).astype(np.float32)


@pytest.mark.parametrize("high", [1.0, 255.0])
def test_a_picture_of_a_ct_is_refused_because_it_is_not_in_hu(high):
    with pytest.raises(InputError, match=rf"case_1: a CT in HU was expected .* between 0 and {high:g}"):
        CheckScan(modality="CT")(ct(0, high), name="case_1")
    CheckScan(modality="MRI")(ct(0, high))


def test_an_mri_given_as_ct_is_warned_of_and_a_ct_is_not(caplog):
    """Down to a crop of soft tissue without air: fat has -100 HU, and noise."""
    for low in (-1000, -210):
        CheckScan(modality="CT")(ct(low, 1500))
    assert not caplog.records
    CheckScan(modality="CT")(ct(0, 1500), name="case_2")
    assert "case_2: a CT in HU was expected" in caplog.text and "MRI" in caplog.text


@pytest.mark.parametrize(("low", "high"), [(-3, 5), (-5, 1495), (-150, 4790)], ids=["z-scored", "resampled", "sharp"])
def test_an_mri_with_a_few_negative_values_is_warned_of_too(low, high, caplog):
    CheckScan(modality="MRI")(ct(low, high))
    assert not caplog.records
    CheckScan(modality="CT")(ct(low, high), name="case_2")
    assert (
        f"case_2: a CT in HU was expected but the values lie between {low} and {high}, none below -200" in caplog.text
    )


def test_a_ct_given_as_mri_is_warned_of(caplog):
    CheckScan()(ct(-1000, 1500))
    assert not caplog.records
    CheckScan(modality="MRI")(ct(-1000, 1500), name="case_3")
    assert "case_3: an MRI was expected but the lowest value is -1000" in caplog.text and "bundle for CT" in caplog.text


def test_real_ct_scans_are_not_warned_of(real_data, caplog):
    check = CheckScan(modality="CT")
    for folder in ("SoftTissueSarcoma_CT/imagesTr", "Unlabelled/CT"):
        for file in sorted((real_data / folder).glob("*.nii.gz")):
            check(np.asarray(nib.load(file).dataobj)[None], name=file.name)
    assert not caplog.records


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_a_label_of_the_classes_comes_back_as_it_is(dtype):
    label = MetaTensor(torch.arange(3).repeat(20).reshape(1, 3, 4, 5).to(dtype))
    assert CheckLabeld("label", 2)({"label": label})["label"] is label


def test_values_that_a_scale_factor_has_rounded_become_whole():
    label = MetaTensor(torch.tensor([0.0, 0.9739, 1.0000001, 2.0039]).reshape(1, 1, 2, 2), meta={"a": 1})
    checked = CheckLabeld("label", 2)({"label": label})["label"]
    assert checked.flatten().tolist() == [0, 1, 1, 2] and checked.meta["a"] == 1


@pytest.mark.parametrize(("value", "shown"), [(77, "77"), (-1, "-1"), (1.5, "1.5"), (0.95, "0.95")])
def test_label_values_without_a_class_are_named(value, shown):
    label = torch.zeros(1, 3, 4, 5)
    label[0, 1, 1, 1:3] = value
    label = MetaTensor(label, meta={"filename_or_obj": "labelsTr/case_3.nii.gz"})
    with pytest.raises(InputError, match=rf"labelsTr/case_3.nii.gz: .* from 0 to 2 .* also has {shown};"):
        CheckLabeld("label", 2)({"label": label})
