import json

import pytest
import torch

from custom_components import load_backbone
from custom_components.networks import (
    DenseSSLNetwork,
    FPN3d,
    SegmentationNetwork,
    WeightsError,
    load_pretrained_backbone,
    load_weights,
    save_weights,
)


@pytest.fixture
def released(tmp_path):
    torch.manual_seed(1)
    network = DenseSSLNetwork(base_channels=4, num_scales=3).eval()
    return network, save_weights(network, tmp_path / "model.pt", {"steps": 3})


def test_saved_weights_load_without_unpickling_and_to_half_precision(released):
    network, path = released
    state = torch.load(path, weights_only=True)
    assert all(value.dtype in (torch.float16, torch.int64) for value in state.values())
    other = load_weights(DenseSSLNetwork(base_channels=4, num_scales=3), path).eval()
    image = torch.randn(1, 1, 8, 8, 8)
    assert torch.allclose(other(image), network(image), atol=1e-2)
    assert json.loads(path.with_suffix(".json").read_text())["steps"] == 3


def test_backbone_loads_into_a_segmentation_network_and_its_head_stays(released):
    network, path = released
    target = SegmentationNetwork(2, base_channels=4, num_scales=3)
    head = target.head.layers[0].weight.clone()
    load_pretrained_backbone(target, path)
    for key, value in target.backbone.state_dict().items():
        assert torch.allclose(value.float(), network.backbone.state_dict()[key].float(), atol=2e-3)
    assert torch.equal(target.head.layers[0].weight, head)


def test_load_backbone_reads_its_size_from_the_file_or_the_bundle(released):
    _, path = released
    bundle = path.parent / "bundle" / "models"
    bundle.mkdir(parents=True)
    path.rename(bundle / "model.pt")
    backbone = load_backbone(bundle.parent)
    assert (backbone.base_channels, backbone.num_scales, backbone.training) == (4, 3, False)


def test_more_input_channels_answer_to_the_same_image_as_before(released):
    _, path = released
    one, three = load_backbone(path), load_backbone(path, in_channels=3)
    image = torch.randn(1, 1, 8, 8, 8)
    for a, b in zip(one(image), three(image.expand(-1, 3, -1, -1, -1))):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_damaged_file_is_told_by_its_hash(released):
    _, path = released
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256.*download it again"):
        load_backbone(path)


def test_a_file_that_needs_unpickling_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"network": FPN3d(1, 4, 2)}, path)
    with pytest.raises(WeightsError, match="only plain tensors are loaded"):
        load_backbone(path)


def test_a_truncated_file_is_told(released):
    _, path = released
    path.with_suffix(".json").unlink()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="model.pt"):
        load_backbone(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(WeightsError, match="no such weight file"):
        load_backbone(tmp_path / "model.pt")


def test_another_architecture_is_told(released):
    _, path = released
    with pytest.raises(WeightsError, match="base_channels=4.*base_channels=8"):
        load_pretrained_backbone(FPN3d(1, 8, 3), path)
    with pytest.raises(WeightsError, match="does not fit this network"):
        load_weights(SegmentationNetwork(2, base_channels=4, num_scales=3), path)


def test_half_a_backbone_is_refused(released):
    network, path = released
    state = {key: value for key, value in network.state_dict().items() if "right_blocks" not in key}
    path.with_suffix(".json").unlink()
    torch.save(state, path)
    with pytest.raises(WeightsError, match="not a whole FPN3d backbone"):
        load_pretrained_backbone(FPN3d(1, 4, 3), path)


def test_a_plain_state_dict_of_the_backbone_loads_too(tmp_path):
    network = FPN3d(1, 4, 2).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "plain.pt")
    image = torch.randn(1, 1, 5, 5, 5)
    assert torch.equal(load_backbone(tmp_path / "plain.pt")(image)[0], network(image)[0])


def test_none_leaves_the_network_untrained():
    network = FPN3d(1, 4, 2)
    before = network.first_conv.weight.clone()
    assert torch.equal(load_pretrained_backbone(network, None).first_conv.weight, before)
    assert torch.equal(load_pretrained_backbone(network, "none").first_conv.weight, before)
