import pytest
import torch
import torch.nn.functional as F

from custom_components.networks import LinearHead, NonLinearHead, SegmentationNetwork


def pyramid_of(size, base=4, scales=3):
    return [torch.randn(2, base * 2**i, *[-(-s // 2**i) for s in size], dtype=torch.float64) for i in range(scales)]


def test_linear_head_is_one_linear_layer_on_the_concatenated_scales():
    size = (7, 5, 6)
    pyramid = pyramid_of(size)
    head = LinearHead(4, 3, 5).double()
    index = torch.meshgrid(*[torch.arange(s) for s in size], indexing="ij")
    full = torch.cat([p[(..., *[i // 2**k for i in index])] for k, p in enumerate(pyramid)], 1)
    weight = torch.cat([layer.weight.flatten(1) for layer in head.layers], 1)
    expected = F.linear(full.movedim(1, -1), weight, head.layers[0].bias).movedim(-1, 1)
    assert torch.allclose(head(pyramid), expected, atol=1e-12)
    assert [layer.bias is not None for layer in head.layers] == [True, False, False]


@pytest.mark.parametrize("head", [LinearHead, NonLinearHead])
def test_a_new_head_gives_every_class_a_low_probability(head):
    zeros = [torch.zeros_like(p, dtype=torch.float32) for p in pyramid_of((8, 8, 8))]
    probability = head(4, 3, 5).eval()(zeros).sigmoid().mean((0, 2, 3, 4))
    bias_only = head is LinearHead
    assert torch.allclose(probability, torch.full((5,), 0.01), atol=1e-6 if bias_only else 0.02)


def test_nonlinear_head_sees_only_the_voxel_itself():
    pyramid = pyramid_of((8, 8, 8))
    head = NonLinearHead(4, 3, 5).double().eval()
    before = head(pyramid)
    pyramid[0][:, :, 3, 3, 3] += 1
    changed = (head(pyramid) != before).any(1).any(0)
    assert changed[3, 3, 3] and changed.sum() == 1


def test_a_frozen_backbone_keeps_weights_and_statistics():
    network = SegmentationNetwork(2, base_channels=4, num_scales=2)
    network.freeze_backbone()
    network.train()
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    network(torch.randn(2, 1, 8, 8, 8)).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in network.backbone.state_dict().items())
    network.freeze_backbone(False)
    network(torch.randn(2, 1, 8, 8, 8)).square().mean().backward()
    optimizer.step()
    after = network.backbone.state_dict()
    assert not torch.equal(after["first_conv.weight"], before["first_conv.weight"])
    name = "left_blocks.0.layers.0.layers.0.running_mean"
    assert not torch.equal(after[name], before[name])


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="linear"):
        SegmentationNetwork(2, head="transformer")
