from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from custom_components.inferers import AutocastInferer, has_native_bfloat16


class Pyramid(nn.Module):
    """Gives a tensor, a tuple of tensors and whole numbers, and notes the precision of its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, 3, 3, padding=1)

    def forward(self, image, scale=1.0):
        features = self.convolution(image) * scale
        self.dtype = features.dtype
        return features, (features.mean(), torch.arange(3))


@pytest.fixture
def pyramid():
    torch.manual_seed(0)
    return Pyramid()


def test_the_network_computes_in_bfloat16_and_gives_single_precision(pyramid):
    image = torch.rand(2, 1, 6, 6, 6)
    wanted = pyramid(image, scale=2.0)[0]
    features, (mean, numbers) = AutocastInferer()(image, pyramid, scale=2.0)
    assert pyramid.dtype == torch.bfloat16
    assert features.dtype == mean.dtype == torch.float32
    assert numbers.dtype == torch.int64
    assert not torch.equal(features, wanted)
    torch.testing.assert_close(features, wanted, atol=2e-2, rtol=2e-2)


def test_gradients_are_those_of_single_precision_to_rounding(pyramid):
    image = torch.rand(2, 1, 6, 6, 6)
    gradients = []
    for inferer in (AutocastInferer(cpu_bfloat16=False), AutocastInferer()):
        pyramid.zero_grad()
        inferer(image, pyramid)[0].square().mean().backward()
        gradients.append(pyramid.convolution.weight.grad.clone())
    assert gradients[1].dtype == torch.float32
    torch.testing.assert_close(gradients[1], gradients[0], atol=2e-2 * gradients[0].abs().max().item(), rtol=0)


def test_switched_off_it_is_the_other_inferer(pyramid):
    image = torch.rand(1, 1, 6, 6, 6)
    assert torch.equal(AutocastInferer(cpu_bfloat16=False)(image, pyramid)[0], pyramid(image)[0])
    assert pyramid.dtype == torch.float32


def test_windows_are_blended_in_single_precision(pyramid):
    image = torch.rand(1, 1, 8, 8, 8)
    windows = SlidingWindowInferer(roi_size=4, overlap=0.5, mode="gaussian")
    wanted = windows(image, lambda window: pyramid(window)[0])
    blended = AutocastInferer(windows)(image, lambda window: pyramid(window)[0])
    assert pyramid.dtype == torch.bfloat16
    assert blended.dtype == torch.float32
    torch.testing.assert_close(blended, wanted, atol=2e-2, rtol=2e-2)


def test_a_pytorch_that_cannot_tell_is_taken_to_have_none(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_native_bfloat16() is False
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert has_native_bfloat16() is True
