import copy
import sys

import pytest
import torch
from torch import nn

from custom_components.errors import InputError
from custom_components.networks import (
    FastNetworks,
    ResidualBlock,
    SegmentationNetwork,
    fast_network,
    fold_batch_norm,
    folding,
)
from custom_components.networks.folding import OneDNNConv3d

# (N, C, H, W, D): odd, anisotropic, flat, two at a time, a single voxel
SHAPES = [(1, 1, 17, 20, 13), (1, 1, 40, 9, 5), (2, 1, 8, 8, 8), (1, 1, 24, 24, 1), (1, 1, 1, 1, 1)]


def trained_network(head="linear", **settings):
    """A network whose batch norms have statistics and weights like those of a trained one, not zeros and ones."""
    torch.manual_seed(0)
    network = SegmentationNetwork(3, base_channels=8, num_scales=3, head=head, **settings).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3)
    return network


@pytest.mark.parametrize("prepare", [fold_batch_norm, fast_network])
@pytest.mark.parametrize("head", ["linear", "nonlinear"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_computes_what_float64_does_to_the_rounding_of_float32(prepare, head, shape):
    network, image = trained_network(head), torch.rand(shape)
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(image.double())
        found = prepare(network)(image)
    assert found.shape == exact.shape
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("rows", [2, 3, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_slabs_join_without_a_seam(monkeypatch, rows, shape):
    network, image = trained_network(), torch.rand(shape)
    monkeypatch.setattr(folding, "SLAB_ELEMENTS", 1)
    monkeypatch.setattr(folding, "MIN_SLAB_ROWS", rows)
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(image.double())
        found = fast_network(network)(image)
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max().clamp(min=1)


def test_every_norm_behind_a_convolution_is_folded_and_no_other():
    network = trained_network()
    blocks = sum(isinstance(module, ResidualBlock) for module in network.modules())
    norms = sum(isinstance(module, nn.BatchNorm3d) for module in network.modules())
    left = sum(isinstance(module, nn.BatchNorm3d) for module in fold_batch_norm(network).modules())
    assert (norms, left) == (2 * blocks, blocks)
    apart = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.BatchNorm3d(2))
    assert [type(module) for module in fold_batch_norm(apart)] == [nn.Conv3d, nn.ReLU, nn.BatchNorm3d]


@pytest.mark.parametrize("prepare", [fold_batch_norm, fast_network])
def test_the_network_itself_and_its_input_stay_as_they_are(prepare):
    network = trained_network().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    image = torch.randn(1, 1, 9, 8, 7)
    kept = image.clone()
    prepare(network)(image)
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(image, kept)


def test_a_relu_is_in_place_only_where_nobody_else_needs_its_input():
    image = torch.randn(1, 1, 4, 4, 4)
    kept = image.clone()
    fast_network(nn.Sequential(nn.Identity(), nn.ReLU()))(image)
    assert torch.equal(image, kept)


@pytest.mark.parametrize(
    "settings", [{"kernel_size": 1}, {"kernel_size": 3, "padding": 1}, {"kernel_size": 2, "stride": 2}]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_convolution_by_onednn_equals_float64(settings, batch):
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 5, **settings)
    image = torch.rand(batch, 3, 7, 6, 9)
    fast = fast_network(convolution)
    if torch.backends.mkldnn.is_available():
        assert type(fast) is OneDNNConv3d
    with torch.no_grad():
        assert torch.allclose(fast(image).double(), convolution.double()(image.double()), atol=1e-6)


def test_a_network_is_prepared_again_only_when_a_weight_changed():
    networks, network = FastNetworks(), trained_network(adapt_classes=True)
    fast = networks.of(network)
    assert networks.of(network) is fast
    with torch.no_grad():
        network.head.layers[0].bias.add_(1)
    changed = networks.of(network)
    assert changed is not fast and networks.of(network) is changed
    network.set_num_classes(5)
    assert networks.of(network)(torch.rand(1, 1, 8, 8, 8)).shape[1] == 5
    assert networks.of(copy.deepcopy(network)) is not networks.of(network)


@pytest.fixture
def openvino():
    sys.modules.setdefault("openvino_telemetry", None)  # as in the module that is tested
    return pytest.importorskip("openvino")


def test_openvino_computes_what_torch_does_in_every_order_of_sizes(openvino):
    network = trained_network()
    compiled = fast_network(network, "openvino")
    shapes = [*SHAPES, (1, 1, 3, 2, 2), (1, 1, 4, 5, 6), (1, 1, 2, 30, 30), *SHAPES[::-1]]
    images = [torch.rand(shape) for shape in shapes]
    with torch.no_grad():
        found = [compiled(image) for image in images]
        for image, logits in zip(images, found):
            expected = network(image)
            assert logits.shape == expected.shape
            assert (logits - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)


def test_openvino_is_imported_without_its_telemetry(openvino):
    fast_network(trained_network(), "openvino")(torch.rand(1, 1, 8, 8, 8))
    assert sys.modules["openvino_telemetry"] is None


def test_openvino_is_for_cpus_only(openvino):
    with pytest.raises(InputError, match="the backend openvino is for CPUs"):
        fast_network(trained_network().to("meta"), "openvino")


def test_a_missing_openvino_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match="needs the package openvino; install it with pip install 'openvino"):
        fast_network(trained_network(), "openvino")
