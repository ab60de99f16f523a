import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd

from custom_components.transforms import ResampleSpacingd


def test_the_result_is_that_of_monai_and_other_entries_are_left_alone():
    image = MetaTensor(torch.rand(1, 9, 8, 7), affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0])))
    image.meta["filename_or_obj"] = "scan.nii.gz"
    result = ResampleSpacingd("image", [1.5, 1.5, 1.5])({"image": image, "image_path": "scan.nii.gz"})
    expected = Spacingd("image", [1.5, 1.5, 1.5])({"image": image})["image"]
    torch.testing.assert_close(result["image"].as_tensor(), expected.as_tensor())
    torch.testing.assert_close(result["image"].affine, expected.affine)
    assert result["image_path"] == "scan.nii.gz"
