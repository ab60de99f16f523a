from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from scipy.optimize import brentq

from custom_components.transforms import RandBezierIntensity, RandBezierIntensityd
from custom_components.transforms.bezier import apply_table, bezier_table


def coordinate(t: float, first: float, second: float) -> float:
    return 3 * t * (1 - t) ** 2 * first + 3 * t**2 * (1 - t) * second + t**3


def exact(intensity: float, points: np.ndarray) -> float:
    """Value of the curve at an intensity, by root finding in float64."""
    intensity = min(max(intensity, 0.0), 1.0)
    t = brentq(lambda u: coordinate(u, points[0, 0], points[1, 0]) - intensity, 0, 1, xtol=1e-14)
    return coordinate(t, points[0, 1], points[1, 1])


def mapped(intensities: np.ndarray, points: np.ndarray) -> np.ndarray:
    table = bezier_table(torch.from_numpy(points), RandBezierIntensity().num_points)
    return apply_table(torch.from_numpy(intensities), table).double().numpy()


@pytest.mark.parametrize("seed", range(12))
def test_the_result_is_the_curve_to_one_thousandth(seed):
    random = np.random.default_rng(seed)
    points = random.random((2, 2))
    points[0, 0], points[1, 0] = min(points[0, 0], 0.9), max(points[1, 0], 0.1)  # nowhere vertical
    intensities = np.concatenate([random.random(200), [0, 1]])
    expected = np.array([exact(x, points) for x in intensities])
    assert np.abs(mapped(intensities, points) - expected).max() < 1e-3


@pytest.mark.parametrize(
    "corners", [(1, 0, 0, 1), (1, 1, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 1, 0)]
)
def test_at_any_steepness_the_result_is_exact_for_an_intensity_close_by(corners):
    points = np.array(corners, dtype=float).reshape(2, 2)
    intensities = np.random.default_rng(0).random(300)
    step = 4 / (RandBezierIntensity().num_points - 1)
    result = mapped(intensities, points)
    assert (result >= [exact(x - step, points) - 1e-6 for x in intensities]).all()
    assert (result <= [exact(x + step, points) + 1e-6 for x in intensities]).all()


def test_every_curve_is_monotone_from_zero_to_one():
    random = np.random.default_rng(0)
    for points in [*random.random((50, 2, 2)), *random.integers(0, 2, (16, 2, 2)).astype(float)]:
        table = bezier_table(torch.from_numpy(points), 513)
        assert table[0] == 0 and table[-1] == 1 and (table.diff() >= 0).all()


def test_control_points_on_the_diagonal_change_nothing():
    image = np.random.default_rng(0).random((1, 9, 8, 7))
    points = np.array([[1 / 3, 1 / 3], [2 / 3, 2 / 3]])
    assert np.abs(mapped(image, points) - image).max() < 1e-4


def test_values_outside_of_zero_to_one_are_clamped():
    result = apply_table(torch.tensor([-3.0, 0.0, 1.0, 2.0]), torch.tensor([0.25, 0.5, 0.75]))
    assert result.tolist() == [0.25, 0.25, 0.75, 0.75]


def test_nothing_happens_with_probability_zero():
    image = torch.rand(1, 9, 9, 9)
    assert torch.equal(RandBezierIntensity(prob=0.0)(image), image)
    with pytest.raises(ValueError, match="num_points"):
        RandBezierIntensity(num_points=1)


def test_type_and_geometry_are_kept():
    image = MetaTensor(torch.rand(1, 9, 1, 7), affine=torch.diag(torch.tensor([1.0, 1, 2, 1])))
    before = image.clone()
    transform = RandBezierIntensity(prob=1.0)
    transform.set_random_state(0)
    result = transform(image)
    assert isinstance(result, MetaTensor) and torch.equal(result.affine, image.affine)
    assert result.shape == image.shape and torch.equal(image, before) and not torch.equal(result, image)
    from_numpy = transform(image.numpy(), randomize=False)
    assert isinstance(from_numpy, torch.Tensor) and np.array_equal(from_numpy, result)
    assert transform(image.half()).dtype == torch.float32


def test_one_seed_gives_one_result_and_the_keys_differ():
    image = torch.rand(1, 8, 8, 8)
    results = []
    for _ in range(2):
        composed = Compose([pickle.loads(pickle.dumps(RandBezierIntensityd(["view_1", "view_2"], prob=1.0)))])
        composed.set_random_state(5)
        results.append(composed({"view_1": image, "view_2": image}))
    assert torch.equal(results[0]["view_1"], results[1]["view_1"])
    assert torch.equal(results[0]["view_2"], results[1]["view_2"])
    assert not torch.equal(results[0]["view_1"], results[0]["view_2"])
