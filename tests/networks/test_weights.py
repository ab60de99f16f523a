import json

import pytest
import torch

from custom_components import load_backbone
from custom_components.networks import (
    DenseSSLNetwork,
    FPN3d,
    SegmentationNetwork,
    WeightsError,
    continue_pretraining,
    load_pretrained_backbone,
    load_weights,
    recorded_classes,
    save_checkpoint,
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


@pytest.mark.parametrize("load", [load_pretrained_backbone, continue_pretraining])
def test_a_file_that_is_gone_is_not_missed_where_a_training_goes_on(load, tmp_path, caplog):
    network, checkpoint = DenseSSLNetwork(base_channels=4, num_scales=3), tmp_path / "last.pt"
    with pytest.raises(WeightsError, match="no such weight file"):
        load(network, tmp_path / "gone.pt", checkpoint=checkpoint)
    checkpoint.touch()
    assert load(network, tmp_path / "gone.pt", checkpoint=checkpoint) is network
    assert caplog.messages == [
        f"{tmp_path}/gone.pt: no such weight file any more; the training goes on from {checkpoint}"
    ]


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


def pretrained_network(steps=2, **sizes):
    """A small pre-training network after some steps of Adam, and its optimiser."""
    network = DenseSSLNetwork(**{"base_channels": 2, "num_scales": 2, "projection_channels": 4, **sizes})
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(steps):
        voxels = torch.randint(0, 8, (2, 16, 3))
        embeddings, restored = network(torch.rand(2, network.backbone.in_channels, 8, 8, 8), voxels)
        optimizer.zero_grad()
        (embeddings.square().sum() + restored.square().mean() + embeddings.sum()).backward()
        optimizer.step()
    return network, optimizer


def test_a_pretraining_goes_on_with_its_heads_and_its_optimiser(tmp_path, caplog):
    network, optimizer = pretrained_network()
    path = save_checkpoint(network, optimizer, tmp_path / "pretraining.pt")
    again, fresh = pretrained_network(steps=0)
    fresh.param_groups[0]["lr"] = 0.5
    with caplog.at_level("INFO"):
        continue_pretraining(again, path, fresh)
    for key, value in network.state_dict().items():
        assert torch.allclose(again.state_dict()[key].float(), value.float(), rtol=1e-3, atol=1e-4), key
    for parameter, known in zip(again.parameters(), network.parameters()):
        assert fresh.state[parameter]["step"] == 2
        for moment in ("exp_avg", "exp_avg_sq"):
            stored, exact = fresh.state[parameter][moment], optimizer.state[known][moment]
            assert stored.dtype == torch.float32 and torch.allclose(stored, exact, rtol=1e-2, atol=0)
    assert fresh.param_groups[0]["lr"] == 0.5
    assert "heads: 22 of 22 entries loaded" in caplog.text and "state of" in caplog.text


def test_the_backbone_of_a_checkpoint_loads_alone(tmp_path):
    network, optimizer = pretrained_network()
    backbone = load_backbone(save_checkpoint(network, optimizer, tmp_path / "pretraining.pt"))
    assert torch.allclose(backbone.first_conv.weight, network.backbone.first_conv.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sizes", [{"projection_channels": 0}, {"in_channels": 3}])
def test_heads_of_another_form_keep_their_first_value_and_the_optimiser_starts_anew(tmp_path, caplog, sizes):
    path = save_checkpoint(*pretrained_network(), tmp_path / "pretraining.pt")
    network, optimizer = pretrained_network(steps=0, **sizes)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with caplog.at_level("INFO"):
        continue_pretraining(network, path, optimizer)
    assert not optimizer.state and "starts anew" in caplog.text and " new (" in caplog.text
    kept = "projector.layers.0.weight" if "projection_channels" in sizes else "restoration.weight"
    assert torch.equal(network.state_dict()[kept], before[kept])
    assert not torch.equal(
        network.state_dict()["backbone.bottom_block.layers.0.layers.2.weight"],
        before["backbone.bottom_block.layers.0.layers.2.weight"],
    )


def test_weights_without_an_optimiser_and_none_at_all_start_with_a_new_one(tmp_path):
    network, _ = pretrained_network()
    again, optimizer = pretrained_network(steps=0)
    continue_pretraining(again, save_weights(network, tmp_path / "model.pt"), optimizer)
    assert not optimizer.state
    before = again.state_dict()["restoration.weight"].clone()
    assert torch.equal(continue_pretraining(again, "none", optimizer).state_dict()["restoration.weight"], before)


def test_a_network_is_refused_where_images_would_be_prepared_otherwise_than_it_was_taught(tmp_path):
    network = SegmentationNetwork(2, base_channels=4, num_scales=3)
    record = {"spacing_mm": [1.5, 1.5, 1.5], "classes": ["Liver", "Spleen"], "intensity_range": [-175, 250]}
    path = save_weights(network, tmp_path / "model.pt", record)
    given = {"spacing": (1.5, 1.5, 1.5), "class_names": ["Liver", "Spleen"], "intensity_range": [-175.0, 250.0]}
    load_weights(network, path, settings=given)
    load_weights(network, path, settings={**given, "air": 0})  # nothing is said of it
    sentences = {
        "spacing": ([1, 1, 1], r'with spacing \[1.5, 1.5, 1.5\], but here .*give --spacing "\[1.5, 1.5, 1.5\]"'),
        "class_names": (["Spleen", "Liver"], r"--class_names \"\['Liver', 'Spleen'\]\""),
        "intensity_range": ([-1350, 1000], "give --intensity_range"),
    }
    for name, (value, sentence) in sentences.items():
        with pytest.raises(WeightsError, match=sentence):
            load_weights(network, path, settings={**given, name: value})
    path.with_suffix(".json").unlink()
    load_weights(network, path, settings={"spacing": [1, 1, 1]})


def test_classes_are_those_of_the_record_where_it_has_some(tmp_path):
    path = tmp_path / "model.pt"
    for record, expected in ((None, ["A"]), ({"classes": ["B", "C"]}, ["B", "C"]), ({"steps": 3}, ["A"]), ([1], ["A"])):
        if record is not None:
            path.with_suffix(".json").write_text(json.dumps(record))
        assert recorded_classes(path, ("A",)) == expected


def test_a_backbone_that_was_pretrained_on_other_images_is_used_with_a_warning(tmp_path, caplog):
    path = save_weights(FPN3d(1, 4, 3), tmp_path / "model.pt", {"intensity_range": [-1350, 1000]})
    load_pretrained_backbone(FPN3d(1, 4, 3), path, {"intensity_range": [-1350, 1000]})
    assert "pre-trained with" not in caplog.text
    load_pretrained_backbone(FPN3d(1, 4, 3), path, {"intensity_range": [-175, 250]})
    assert "pre-trained with intensity_range [-1350, 1000], here it is [-175, 250]" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_of_a_training_that_diverged_are_not_written(value, tmp_path):
    network = FPN3d(1, 4, 3)
    network.first_conv.weight.data[0, 0, 0, 0, 0] = value
    optimizer = torch.optim.Adam(network.parameters())
    for save in (
        lambda: save_weights(network, tmp_path / "model.pt"),
        lambda: save_checkpoint(network, optimizer, tmp_path / "model.pt"),
    ):
        with pytest.raises(WeightsError, match="first_conv.weight has values that are not finite or too large"):
            save()
    assert list(tmp_path.iterdir()) == []
