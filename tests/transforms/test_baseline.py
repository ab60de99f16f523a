from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandGaussianNoise
from scipy import ndimage

from custom_components.transforms import (
    RandInPlaneBlurOrSharpen,
    RandInPlaneBlurOrSharpend,
    RandWindow,
    RandWindowd,
)
from custom_components.transforms.baseline import blur_in_plane, sharpen_in_plane, window


def scipy_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    for axis in (1, 2):
        image = ndimage.gaussian_filter1d(image, sigma, axis=axis, mode="nearest")
    return image


@pytest.mark.parametrize("shape", [(2, 24, 17, 5), (1, 3, 1, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("sigma", [1.0, 1.5])
def test_blurring_is_that_of_scipy_in_plane(shape, sigma):
    image = np.random.default_rng(0).random(shape)
    # MONAI integrates the Gaussian over a voxel, scipy samples it
    assert np.abs(blur_in_plane(torch.from_numpy(image), sigma).numpy() - scipy_blur(image, sigma)).max() < 0.03


def test_slices_do_not_mix():
    image = torch.zeros(1, 9, 9, 5)
    image[0, 4, 4, 2] = 1
    blurred = blur_in_plane(image, 1.5)
    assert blurred[..., 2].sum() == pytest.approx(1, abs=0.02) and not blurred[..., [0, 1, 3, 4]].any()
    assert blurred[0, 4, 4, 2] == blurred.max() and torch.allclose(blurred, blurred.transpose(1, 2))


def test_sharpening_raises_contrast_and_keeps_flat_regions():
    image = torch.zeros(1, 20, 20, 3)
    image[:, 10:] = 100
    sharpened = sharpen_in_plane(image, 0.5, 0.5, 10.0)
    assert sharpened.max() > 110 and sharpened.min() < -10
    assert torch.allclose(sharpened[:, [0, 19]], image[:, [0, 19]], atol=1e-3)
    blurred = blur_in_plane(image, 0.5)
    assert torch.allclose(sharpened, 11 * blurred - 10 * blur_in_plane(blurred, 0.5), atol=1e-3)


def test_half_of_the_changed_images_are_sharpened():
    transform = RandInPlaneBlurOrSharpen(prob=0.5)
    transform.set_random_state(0)
    done = []
    for _ in range(2000):
        transform.randomize()
        done.append((transform._do_transform, transform.sharpens))
        if transform._do_transform:
            low, high = transform.sharpen_sigma if transform.sharpens else transform.sigma
            assert low <= transform.drawn_sigma <= high and 10 <= transform.drawn_alpha <= 30
    changed = [sharpens for do, sharpens in done if do]
    assert len(changed) / 2000 == pytest.approx(0.5, abs=0.05) and np.mean(changed) == pytest.approx(0.5, abs=0.06)


def test_a_window_clips_and_scales():
    image = torch.tensor([-2000.0, -1000.0, -500.0, 0.0, 3000.0])
    assert window(image, -1000.0, 0.0).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_the_window_is_random_or_the_default_and_the_result_in_zero_to_one(prob):
    image = np.linspace(-3000, 3000, 60, dtype=np.float64).reshape(1, 5, 4, 3)
    transform = RandWindow(prob=prob)
    transform.set_random_state(0)
    for _ in range(20):
        result = transform(image)
        low, high = transform.bounds
        if prob:
            assert -1350 <= low <= -1000 and 300 <= high <= 1000
        else:
            assert (low, high) == (-1350, 1000)
        assert np.allclose(result, (np.clip(image, low, high) - low) / (high - low), atol=1e-6)
        assert result.min() == 0 and result.max() == 1 and result.dtype == torch.float32


def test_windows_that_could_be_empty_are_refused():
    with pytest.raises(ValueError, match="below"):
        RandWindow(lower=(-100, 400), upper=(300, 1000))
    with pytest.raises(ValueError, match="below"):
        RandWindow(default=(10, 10))


def test_monai_draws_the_noise_level_from_zero_to_the_given_one():
    noise = RandGaussianNoise(prob=1.0, std=30.0)
    noise.set_random_state(0)
    levels = np.array([noise(torch.zeros(1, 12, 12, 12)).std().item() for _ in range(300)])
    assert levels.max() < 32 and np.abs(np.histogram(levels, 3, (0, 30))[0] / 300 - 1 / 3).max() < 0.1


@pytest.mark.parametrize("transform", [RandInPlaneBlurOrSharpen(prob=1.0), RandWindow()])
def test_type_and_geometry_are_kept(transform):
    values = (1000 * torch.randn(1, 9, 8, 7)).short()
    image = MetaTensor(values, affine=torch.diag(torch.tensor([1.0, 1, 2, 1])))
    transform.set_random_state(0)
    for _ in range(4):
        result = transform(image)
        assert isinstance(result, MetaTensor) and torch.equal(result.affine, image.affine)
        assert result.dtype == torch.float32 and result.shape == image.shape and result.is_contiguous()
        assert torch.equal(image, values)
        from_numpy = transform(values.numpy(), randomize=False)
        assert isinstance(from_numpy, torch.Tensor) and np.array_equal(from_numpy, result)


@pytest.mark.parametrize("form", [RandInPlaneBlurOrSharpend, RandWindowd])
def test_one_seed_gives_one_result_and_the_keys_differ(form):
    image = 300 * torch.randn(1, 8, 8, 8)
    results = []
    for _ in range(2):
        composed = Compose([pickle.loads(pickle.dumps(form(["view_1", "view_2"], prob=1.0)))])
        composed.set_random_state(5)
        results.append(composed({"view_1": image, "view_2": image}))
    assert torch.equal(results[0]["view_1"], results[1]["view_1"])
    assert torch.equal(results[0]["view_2"], results[1]["view_2"])
    assert not torch.equal(results[0]["view_1"], results[0]["view_2"])
