"""Body mask of CT and MRI: which voxels are patient and which are the air around."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor
from scipy import ndimage

from .checks import scan_name

CT_THRESHOLD_HU = -500.0
MRI_THRESHOLD = 0.3  # of the way from the dark level to Otsu's threshold
MRI_MIN_AIR = 0.05  # smallest region of air, as a fraction of the volume
MIN_ISLAND = {"CT": 0.1, "MRI": 0.01}


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """Otsu's threshold (1979) of `values`: it maximises the variance between the two classes that it makes."""
    counts, edges = np.histogram(values, bins=bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = below[-1] + counts[-1] - below
    moment = np.cumsum(counts * centres)
    mean_below = moment[:-1] / np.maximum(below, 1)
    mean_above = (moment[-1] - moment[:-1]) / np.maximum(above, 1)
    return float(centres[:-1][np.argmax(below * above * (mean_below - mean_above) ** 2)])


def mri_threshold(volume: np.ndarray) -> float:
    """Intensity between air and tissue of an MRI (H, W, D), in the volume's own unit.

    It lies 30% of the way from the 1st percentile to Otsu's threshold. Otsu's own threshold separates fat from muscle
    as readily as tissue from air; 30% of it is above the noise of air and below muscle, and it follows any linear
    change of the intensities. The brightest percent is clipped first, so that a few bright voxels do not move it.
    """
    volume = np.asarray(volume, dtype=np.float32)
    dark, bright = (np.float32(value) for value in np.percentile(volume, [1, 99]))
    if dark == bright:  # more than 98% of the voxels are equal
        dark, bright = volume.min(), volume.max()
    return float(dark + MRI_THRESHOLD * (otsu_threshold(np.clip(volume, dark, bright)) - dark))


def keep_large(mask: np.ndarray, min_voxels: float | None = None, fraction: float = 0.0) -> np.ndarray:
    """The connected regions (6 neighbours) of `mask` (H, W, D) with at least `min_voxels` voxels, or else with at
    least `fraction` of the largest region's voxels; bool (H, W, D)."""
    regions, count = ndimage.label(mask)
    if count == 0:
        return mask.astype(bool)
    # slice by slice, because bincount copies its input to int64
    sizes = np.zeros(count + 1, dtype=np.int64)
    for plane in regions:
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    sizes[0] = 0
    keep = np.asarray(sizes >= (fraction * sizes.max() if min_voxels is None else min_voxels))
    keep[0] = False
    return keep[regions]


def fill_axial_holes(mask: np.ndarray) -> np.ndarray:
    """`mask` (H, W, D) and, in each slice of the last axis, all that cannot reach the slice's border outside of it.

    Slice by slice, because in 3D the lungs reach the air outside through the nose, or through the end of the scan.
    """
    filled = np.empty(mask.shape, dtype=bool)
    # a rim of air around the slice joins the air that a body touching the border cuts into pieces
    air = np.ones((mask.shape[0] + 2, mask.shape[1] + 2), dtype=bool)
    for k in range(mask.shape[2]):
        np.logical_not(mask[:, :, k], out=air[1:-1, 1:-1])
        regions, _ = ndimage.label(air)
        filled[:, :, k] = regions[1:-1, 1:-1] != regions[0, 0]
    return filled


class BodyMask(Transform):
    """Mask of the patient's body in an image (C, H, W, D) whose last axis is the axial one (RAS orientation).

    CT, in HU: voxels above -500 HU, without islands (table, tubes, cushions), with all that they enclose in an axial
    slice (lungs, bowel gas). MRI, in any unit: the same above `mri_threshold`; a dark region that reaches the border
    counts as air only where it holds at least 5% of the volume, so that a crop full of tissue keeps the fluid at its
    border. Of several channels the first one decides.

    Args:
        modality: "CT" or "MRI".
        min_island: islands with fewer voxels than this fraction of the largest region are dropped; default 0.1 for CT,
            where a table in a crop around a limb has up to 6%, and 0.01 for MRI, where tables are invisible.

    Returns:
        uint8 (1, H, W, D), 1 in the body; the whole volume where the method finds nothing.

    Raises:
        ValueError: unknown modality, an image that is not (C, H, W, D), or a CT that is already scaled to [0, 1]: the
            mask needs HU, so put it before intensity scaling.
    """

    def __init__(self, modality: str, min_island: float | None = None) -> None:
        if modality not in MIN_ISLAND:
            raise ValueError(f'modality must be "CT" or "MRI" but is {modality!r}')
        self.modality = modality
        self.min_island = MIN_ISLAND[modality] if min_island is None else min_island

    def __call__(self, image: NdarrayOrTensor) -> NdarrayOrTensor:
        if image.ndim != 4:
            raise ValueError(
                f"{scan_name(image)}: expected an image (C, H, W, D) but its shape is {tuple(image.shape)}"
            )
        image = convert_to_tensor(image, track_meta=get_track_meta())
        volume = (image.as_tensor() if isinstance(image, MetaTensor) else image)[0].cpu().numpy()
        if self.modality == "CT":
            if volume.min() >= 0 and volume.max() <= 1:
                raise ValueError(
                    f"{scan_name(image)}: the CT body mask needs HU but the values are within [0, 1]; "
                    "put BodyMask before intensity scaling"
                )
            threshold = CT_THRESHOLD_HU
        else:
            threshold = mri_threshold(volume)
        # islands first: a hollow table is large once it is filled, a thin shell before
        mask = fill_axial_holes(keep_large(volume > threshold, fraction=self.min_island))
        if self.modality == "MRI":
            mask = ~keep_large(~mask, min_voxels=MRI_MIN_AIR * mask.size)
        if not mask.any():
            mask[:] = True
        return convert_to_dst_type(torch.from_numpy(mask[None].view(np.uint8)), dst=image, dtype=torch.uint8)[0]


class BodyMaskd(MapTransform):
    """Dictionary form of `BodyMask`: adds the mask of an image and leaves the image as it is.

    Args:
        keys: the image (C, H, W, D), one key.
        body_key: where the mask, uint8 (1, H, W, D), is put.
        modality: "CT" or "MRI".
        min_island: as in `BodyMask`.
        allow_missing_keys: do nothing where the image is absent.

    Raises:
        ValueError: more than one key, and as `BodyMask`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        body_key: Hashable = "body",
        modality: str = "CT",
        min_island: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"BodyMaskd makes the mask of one image but got the keys {self.keys}")
        self.body_key = body_key
        self.body_mask = BodyMask(modality, min_island)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.body_key] = self.body_mask(d[key])
        return d
