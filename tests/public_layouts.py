"""Phantoms written in the folder layouts and with the label values of BTCV and AMOS22."""

import json

import nibabel as nib
import numpy as np

from custom_components.data import PHANTOM_CLASSES, make_phantom

SHAPE, SPACING = (48, 40, 36), (7.2, 6.2, 7.6)
BTCV_VALUES = {"Liver": 6, "Spleen": 1, "RightKidney": 2, "LeftKidney": 3, "Aorta": 8, "Bladder": 0}
AMOS_VALUES = {**BTCV_VALUES, "Bladder": 14}


def write_phantom(modality, seed, image, label, values):
    volume, classes, affine = make_phantom(modality, seed, SHAPE, SPACING)
    table = np.array([0, *(values[name] for name in PHANTOM_CLASSES)], dtype=np.uint8)
    for path, content in ((image, volume), (label, table[classes])):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(content, affine), path)


def write_btcv(folder, count=6):
    training = folder / "RawData" / "Training"
    for i in range(1, count + 1):
        image, label = training / "img" / f"img{i:04d}.nii.gz", training / "label" / f"label{i:04d}.nii.gz"
        write_phantom("CT", i, image, label, BTCV_VALUES)
    return folder


def write_amos(folder, mri=6, ct=1, unlabelled=0):
    """AMOS22 as downloaded: its dataset.json lists CT and MRI of `imagesTr` under "training", the rest elsewhere."""
    lists = {"Tr": "training", "Va": "validation", "Ts": "test"}
    listed = {name: [] for name in lists.values()}
    for number in [*range(1, ct + 1), *range(507, 507 + mri + unlabelled)]:
        part = "Va" if number == 507 else "Ts" if number >= 507 + mri else "Tr"
        name = f"amos_{number:04d}.nii.gz"
        modality = "CT" if number < 500 else "MRI"
        image, label = folder / f"images{part}" / name, folder / f"labels{part}" / name
        write_phantom(modality, number, image, label, AMOS_VALUES)
        if part == "Ts":
            label.unlink()
        listed[lists[part]].append({"image": f"./images{part}/{name}", "label": f"./labels{part}/{name}"})
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "spleen"}, **listed}))
    return folder


PUBLIC_LAYOUTS = {"btcv_ct_segmentation": write_btcv, "amos_mri_segmentation": write_amos}
