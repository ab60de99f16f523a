"""Which classes are annotated, and crops that make up for those that are seldom drawn."""

import os
import resource

import numpy as np
import torch
from monai.transforms import RandCropByLabelClassesd, Transform

from custom_components.data import MemoryMappedDataset
from custom_components.transforms import AnnotatedClassesd, ClassIndicesd, crop_ratios, tell_undrawn_classes


def test_annotated_labels_become_a_vector():
    assert AnnotatedClassesd(3)({"annotated_labels": [1, 3]})["annotated"].tolist() == [1.0, 0.0, 1.0]
    assert AnnotatedClassesd(2)({"case": "a"})["annotated"].tolist() == [1.0, 1.0]


def test_ratios_are_the_inverse_of_how_often_a_class_is_drawn():
    items = [{"annotated_labels": [1]}, {"annotated_labels": [1, 2]}, {"annotated_labels": [1]}, {}]
    assert crop_ratios(items, 2) == [1.0, 1.0, 2.0]
    assert crop_ratios([{"annotated_labels": [1]}], 2) == [1.0, 1.0, 1.0]


def test_a_seldom_drawn_class_is_at_the_centre_of_as_many_crops():
    # value 2 is drawn in one of six scans: one crop of six scans x 1 / 2 + ... would be a third of value 1's
    full = torch.zeros(1, 6, 6, 6)
    full[0, :2], full[0, 4:] = 1, 2
    partial = full.clone()
    partial[full == 2] = 0
    items = [{"annotated_labels": [1, 2]}] + 5 * [{"annotated_labels": [1]}]
    labels = [full] + 5 * [partial]

    def centres(ratios):
        crop = RandCropByLabelClassesd("label", "label", 1, ratios=ratios, num_classes=3, num_samples=1, warn=False)
        crop.set_random_state(0)
        drawn = [int(crop({"label": labels[i % 6]})[0]["label"].item()) for i in range(3000)]
        return np.bincount(drawn, minlength=3) / 3000

    plain, balanced = centres(None), centres(crop_ratios(items, 2))
    assert plain[2] / plain[1] < 0.2
    assert balanced[2] / balanced[1] > 1.6 * plain[2] / plain[1]


def test_classes_that_no_scan_shows_and_empty_labels_are_told(tmp_path, caplog):
    volumes = {"a": [1], "b": [], "c": [1, 3]}
    items = []
    for case, values in volumes.items():
        label = np.zeros((6, 6, 6), np.uint8)
        for value in values:
            label[value] = value
        items.append({"case": case, "values": label, "annotated_labels": [1, 2] if case == "c" else [1, 2, 3]})
    steps = [LabelOf(), AnnotatedClassesd(3), ClassIndicesd(3)]

    def told(chosen):
        caplog.clear()
        dataset = MemoryMappedDataset(chosen, steps, tmp_path, progress=False)
        tell_undrawn_classes(dataset, ["Liver", "Spleen", "Aorta"])
        return caplog.messages

    spleen, aorta, empty = told(items)
    assert spleen.startswith("Spleen: has no voxel in any of the 3 training scans")
    # drawn in c only, which is said not to show it
    assert aorta.startswith("Aorta: has no voxel in any of the 2 training scans where it is annotated")
    assert empty.startswith("1 of 3 training scans") and "such as b" in empty
    (spleen, aorta) = told([items[2]])
    assert aorta.startswith("Aorta: is not among the annotated_labels of any of the 1 training scans")
    items[2]["annotated_labels"] = [1, 2, 3]
    items[0]["values"][5] = 2
    assert told([items[0], items[2]]) == []


def test_no_file_is_kept_open_for_every_scan(tmp_path):
    label = np.zeros((2, 2, 2), np.uint8)
    label[0] = 1
    items = [{"case": str(index), "values": label, "annotated_labels": [1]} for index in range(40)]
    dataset = MemoryMappedDataset(items, [LabelOf(), AnnotatedClassesd(1), ClassIndicesd(1)], tmp_path, progress=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 30, hard))
    try:
        tell_undrawn_classes(dataset, ["Liver"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class LabelOf(Transform):
    def __call__(self, data):
        return {"case": data["case"], "annotated_labels": data["annotated_labels"], "label": data["values"][None]}
