"""Classes that are one piece of tissue: what lies apart from the largest piece is taken off."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage


class LargestComponentd(MapTransform):
    """Keep the largest connected component of some classes of a label, and make the rest of them background.

    MONAI's `KeepLargestConnectedComponentd` does the same and needs scikit-image; this one works in the bounding box
    of each class, which is small in a large scan. Voxels are connected over faces, edges and corners.

    Args:
        keys: labels `(1, H, W, D)`, value k is `class_names[k - 1]`.
        class_names: names of the label values 1, 2, ...
        one_piece: the classes that are one piece; names that are not among `class_names` are not looked for, so that a
            bundle's list may stay where its classes are replaced.
    """

    def __init__(self, keys: KeysCollection, class_names: Sequence[str], one_piece: Sequence[str]) -> None:
        super().__init__(keys)
        wanted = {one_piece} if isinstance(one_piece, str) else set(one_piece)  # a command line's single name
        self.values = [value for value, name in enumerate(class_names, 1) if name in wanted]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            voxels = torch.as_tensor(result[key])[0].cpu().numpy().astype(np.uint8)
            boxes = ndimage.find_objects(voxels)
            remove = np.zeros(voxels.shape, bool)
            for value in self.values:
                box = boxes[value - 1] if value <= len(boxes) else None
                if box is None:
                    continue
                mask = voxels[box] == value
                pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
                if count > 1:
                    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
                    remove[box] |= mask & (pieces != largest)
            if remove.any():
                # a copy: the tensor may be somebody else's
                label = result[key].clone()
                label[:, torch.from_numpy(remove).to(label.device)] = 0
                result[key] = label
        return result
