import json

import pytest
import torch

from custom_components.errors import InputError
from custom_components.networks import SegmentationNetwork, load_backbone, load_weights
from custom_components.release.label_app import add_model

from .conftest import SEGMENTER, SSL, TINY


def config(model, name):
    return json.loads((model / "configs" / f"{name}.json").read_text())


def test_a_model_brings_its_code_weights_and_backbone(bundles, tmp_path):
    model = add_model(bundles / SEGMENTER, tmp_path / "model")
    assert model == tmp_path / "model" / SEGMENTER
    assert {path.name for path in (model / "models").glob("*.pt")} == {"model.pt", "pretrained.pt"}
    assert (model / "custom_components" / "annotation" / "requests.py").is_file()
    assert [path.name for path in model.parent.iterdir()] == [SEGMENTER]


def test_what_annotators_trained_is_not_replaced(bundles, tmp_path):
    model = add_model(bundles / SEGMENTER, tmp_path)
    (model / "models" / "model.pt").write_bytes(b"trained")
    assert add_model(bundles / SEGMENTER, tmp_path) == model
    assert (model / "models" / "model.pt").read_bytes() == b"trained"


def test_with_labels_of_ones_own_a_model_has_the_pretrained_backbone_and_finds_nothing_yet(bundles, tmp_path):
    labels = ["Head", "Body", "Tail"]
    model = add_model(bundles / SEGMENTER, tmp_path, labels)
    network = load_weights(SegmentationNetwork(3, **TINY), model / "models" / "model.pt").eval()
    backbone = load_backbone(bundles / SSL).state_dict()
    assert all(torch.equal(value, backbone[key]) for key, value in network.backbone.state_dict().items())
    assert (network(torch.rand(1, 1, 9, 8, 7)) < 0).all()
    for name in ("train", "evaluate", "inference"):
        assert config(model, name)["class_names"] == labels
    output = config(model, "metadata")["network_data_format"]["outputs"]["pred"]
    assert output["channel_def"] == {"0": "background", "1": "Head", "2": "Body", "3": "Tail"}
    assert output["num_channels"] == 3


def test_other_labels_need_another_folder(bundles, tmp_path):
    add_model(bundles / SEGMENTER, tmp_path, ["Head", "Tail"])
    assert add_model(bundles / SEGMENTER, tmp_path).is_dir()
    with pytest.raises(InputError, match="has the labels Head, Tail; name another app folder"):
        add_model(bundles / SEGMENTER, tmp_path, ["Liver"])


def test_a_bundle_that_cannot_be_served_is_named(bundles, tmp_path):
    with pytest.raises(InputError, match="a segmentation bundle was expected there"):
        add_model(bundles / SSL, tmp_path)
    with pytest.raises(InputError, match="a segmentation bundle was expected there"):
        add_model(bundles / "nothing", tmp_path)
    (bundles / SEGMENTER / "models" / "model.pt").unlink()
    with pytest.raises(InputError, match="has no models/model.pt"):
        add_model(bundles / SEGMENTER, tmp_path)
