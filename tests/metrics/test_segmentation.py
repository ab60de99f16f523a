import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from custom_components.metrics import SegmentationScores, mean_by_class
from custom_components.metrics.segmentation import dice_score, hausdorff_95


def slow_hausdorff(a, b, spacing):
    """All distances between the surface voxels, by brute force."""
    surfaces = [np.argwhere(m & ~binary_erosion(m)) * spacing for m in (a, b)]
    distances = cdist(*surfaces)
    return max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.5, 3.0)])
def test_hausdorff_equals_brute_force_on_anisotropic_voxels(spacing):
    index = np.stack(np.meshgrid(*[np.arange(s) for s in (20, 18, 14)], indexing="ij"), -1)
    a = np.linalg.norm((index - [8, 8, 6]) * [1, 1, 1.5], axis=-1) < 5
    b = np.linalg.norm((index - [10, 8, 7]) * [1, 1.2, 1.5], axis=-1) < 4.5
    found = hausdorff_95(torch.from_numpy(a), torch.from_numpy(b), spacing)
    assert found == pytest.approx(slow_hausdorff(a, b, np.array(spacing)), abs=1e-4)


def test_empty_masks_have_defined_scores():
    empty, one = torch.zeros(3, 3, 3, dtype=torch.bool), torch.zeros(3, 3, 3, dtype=torch.bool)
    one[1, 1, 1] = True
    assert (dice_score(empty, empty), hausdorff_95(empty, empty, (1, 1, 1))) == (None, None)
    assert (dice_score(empty, one), hausdorff_95(empty, one, (1, 1, 1))) == (0.0, math.inf)
    assert (dice_score(one, empty), hausdorff_95(one, empty, (1, 1, 1))) == (None, math.inf)
    assert (dice_score(one, one), hausdorff_95(one, one, (1, 1, 1))) == (1.0, 0.0)


def test_rows_leave_out_what_is_not_annotated(tmp_path):
    label = torch.zeros(1, 6, 6, 6)
    label[0, :3] = 1
    label[0, 5] = 2
    prediction = label.clone()
    prediction[0, 2] = 2
    truth = MetaTensor(label, affine=torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0])))
    scores = SegmentationScores(["A", "B"], tmp_path / "metrics.csv", hausdorff=True)
    state = SimpleNamespace(
        batch=[
            {"case": "full", "annotated": torch.tensor([1.0, 1.0])},
            {"case": "part", "annotated": torch.tensor([1.0, 0.0])},
        ],
        output=[{"pred": prediction, "label": truth}, {"pred": label, "label": truth}],
    )
    scores.iteration_completed(SimpleNamespace(state=state))
    mean = scores.compute()
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["case"], r["class"]) for r in rows] == [("full", "A"), ("full", "B"), ("part", "A"), ("part", "B")]
    assert [r["dice"] for r in rows] == ["0.8000", "0.6667", "1.0000", ""]
    assert rows[3]["hd95_mm"] == "" and rows[2]["hd95_mm"] == "0.0000"
    assert float(rows[0]["hd95_mm"]) == 2.0  # one slice of 2 mm
    assert mean == pytest.approx((0.9 + 2 / 3) / 2)
    assert mean_by_class(tmp_path / "metrics.csv") == {"A": 0.9, "B": 0.6667}


def test_a_class_that_is_not_there_has_no_dice_and_what_is_found_of_it_is_told_by_the_distance():
    """Which scans count must not depend on the network: a comparison would leave out where one of two is wrong."""
    scores, empty, full = SegmentationScores(["A"], hausdorff=True), torch.zeros(1, 4, 4, 4), torch.ones(1, 4, 4, 4)
    for case, (prediction, label) in enumerate([(empty, empty), (full, empty), (full, full)]):
        scores.update({"case": str(case), "pred": prediction, "label": label})
    assert [(row["dice"], row["hd95_mm"]) for row in scores.rows] == [(None, None), (None, math.inf), (1.0, 0.0)]
    assert scores.compute() == 1.0


def test_a_prediction_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="case_1: the prediction is"):
        SegmentationScores(["A"]).update(
            {"case": "case_1", "pred": torch.zeros(1, 2, 2, 2), "label": torch.zeros(1, 2, 2, 3)}
        )


def test_empty_labels_and_classes_that_are_drawn_nowhere_are_told(tmp_path, caplog):
    empty, label = torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)
    label[0, :2] = 1
    scores = SegmentationScores(["A", "B"], tmp_path / "metrics.csv")
    for case, truth in {"one": label, "none": empty}.items():
        scores.update({"case": case, "pred": label, "label": truth})
    assert scores.compute() == 1.0
    first, second = caplog.messages
    assert first.startswith("1 of 2 scored scans have a label without any voxel") and "such as none" in first
    assert second.startswith("B: no voxel in any of the 2 scored scans")
    caplog.clear()
    scores.reset()
    both = label.clone()
    both[0, 3] = 2
    scores.update({"case": "both", "pred": both, "label": both})
    assert scores.compute() == 1.0 and not caplog.messages
    scores.reset()
    scores.update({"case": "part", "annotated": torch.tensor([1.0, 0.0]), "pred": both, "label": label})
    scores.update({"case": "nothing", "annotated": torch.zeros(2), "pred": both, "label": label})
    assert scores.compute() == 1.0 and not caplog.messages  # what is not scored is not told
