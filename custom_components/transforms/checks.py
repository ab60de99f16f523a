"""Checks of a scan that has just been read, so that a damaged file is reported before training and not in the loss."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from custom_components.errors import InputError

logger = logging.getLogger(__name__)

# a CT has air in or around the patient (-1000 HU), and even a crop without any has fat (-100 HU) with noise; an MRI has
# at most the few negative values of a z-score or of resampling
LOWEST_OF_CT_HU = -200.0
LOWEST_OF_MRI = -500.0
# of a label that was stored with a scale factor: half a step where 0 to 255 stand for 15 classes
ROUNDING = 0.03


def scan_name(image: NdarrayOrTensor, name: Any = None) -> str:
    """What to call an image in a message: `name`, else the file that it was read from, else "image"."""
    if name is None and isinstance(image, MetaTensor):
        name = image.meta.get("filename_or_obj")
    return "image" if name is None else str(name)


class CheckScan(Transform):
    """Check that an image is a 3D scan with finite values that are not all the same; return it unchanged.

    The image comes from `LoadImage` and `EnsureChannelFirst` and has the shape (C, H, W, D).

    Args:
        channels: the number of channels C that the image must have.
        modality: "CT" also checks that the values can be HU, and warns where they look like those of an MRI (none is
            below -200, while the air around and in a patient has about -1000 HU); "MRI" warns where they look like HU
            (one is below -500); None does neither.

    Raises:
        InputError: (a ValueError) one sentence with the file's name, what was expected, what came and what to do, where
            the image is not 3D (a 2D picture, a time series), has another number of channels, holds NaN or infinite
            voxels, is constant or without voxels, or is a CT whose values are those of a picture (0 to 255, or 0 to 1).
        ValueError: unknown modality.
    """

    def __init__(self, channels: int = 1, modality: str | None = None) -> None:
        if modality not in (None, "CT", "MRI"):
            raise ValueError(f'modality must be "CT", "MRI" or None but is {modality!r}')
        self.channels, self.modality = channels, modality

    def __call__(self, image: NdarrayOrTensor, name: Any = None) -> NdarrayOrTensor:
        """Check `image` (C, H, W, D); `name` is used in messages instead of the name of the image's file."""
        name = scan_name(image, name)
        shape = tuple(image.shape)
        wanted = f"a 3D scan of shape ({self.channels}, H, W, D) was expected"
        if len(shape) != 4:
            what = "a 2D image" if len(shape) == 3 else f"an array of {len(shape)} axes"
            raise InputError(f"{name}: {wanted} but {what} of shape {shape} came; store one 3D volume a file")
        if shape[0] != self.channels:
            raise InputError(
                f"{name}: {wanted} but shape {shape} with {shape[0]} channels came; "
                f"store one 3D volume a file (split time points or modalities) or set channels={shape[0]}"
            )
        if 0 in shape:
            raise InputError(f"{name}: {wanted} but an empty image of shape {shape} came; export the scan again")
        values = torch.as_tensor(image.as_tensor() if isinstance(image, MetaTensor) else image)
        if values.is_floating_point():
            finite = torch.isfinite(values)
            if not finite.all():
                count = values.numel() - int(finite.sum())
                raise InputError(
                    f"{name}: finite values were expected but {count} of {values.numel()} voxels are NaN or infinite; "
                    "replace them by the value of air or export the scan again"
                )
        low, high = values.min(), values.max()
        if low == high:
            raise InputError(
                f"{name}: a scan with contrast was expected but every voxel has the value {low.item():g}; "
                "export the scan again or remove the file"
            )
        if self.modality == "MRI" and low < LOWEST_OF_MRI:
            logger.warning(
                "%s: an MRI was expected but the lowest value is %g, as of air in CT; if it is one use a bundle for CT",
                name,
                low,
            )
        if self.modality == "CT" and low > LOWEST_OF_CT_HU:
            if low >= 0 and high <= 255:
                raise InputError(
                    f"{name}: a CT in HU was expected but the values lie between {low.item():g} and {high.item():g}, "
                    "like those of a picture; export the scan again with its rescale slope and intercept"
                )
            logger.warning(
                "%s: a CT in HU was expected but the values lie between %g and %g, none below %g as in air; if it is "
                "an MRI use a bundle for MRI, if it is a CT check that its rescale slope and intercept are applied",
                name,
                low,
                high,
                LOWEST_OF_CT_HU,
            )
        return image


class CheckScand(MapTransform):
    """Dictionary form of `CheckScan`: every key's image is checked and left as it is.

    Args:
        keys: images (C, H, W, D) to check.
        name_key: entry whose value names the scan in messages, for images that do not know their file.
        channels, modality: as in `CheckScan`.
        allow_missing_keys: skip keys that are absent.

    Raises:
        InputError: as `CheckScan`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        name_key: Hashable | None = None,
        channels: int = 1,
        modality: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.name_key = name_key
        self.check = CheckScan(channels, modality)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            file = scan_name(d[key])
            # the file says more than the case's name, which is for images that do not know their file
            self.check(d[key], name=d.get(self.name_key) if file == "image" and self.name_key is not None else file)
        return d


class CheckLabeld(MapTransform):
    """Check that a label volume holds whole numbers from 0 to `num_classes` and nothing else.

    Values that are whole but for the rounding of a scaled file (scl_slope) are rounded; other labels are left as they
    are.

    Args:
        keys: label volumes, any shape.
        num_classes: number of classes; 0 is the background.
        allow_missing_keys: skip keys that are absent.

    Raises:
        InputError: one sentence with the file's name and the values that have no class.
    """

    def __init__(self, keys: KeysCollection, num_classes: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            values = torch.as_tensor(d[key].as_tensor() if isinstance(d[key], MetaTensor) else d[key])
            whole = values.round()
            wrong = (whole < 0) | (whole > self.num_classes) | ((values - whole).abs() > ROUNDING)
            if wrong.any():
                found = values[wrong].unique().tolist()
                shown = ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if len(found) > 5 else "")
                raise InputError(
                    f"{scan_name(d[key])}: whole numbers from 0 to {self.num_classes} were expected, one a class, but "
                    f"the label also has {shown}; correct the label, or name all classes in class_names"
                )
            if not torch.equal(values, whole):
                d[key] = d[key].round()
        return d
