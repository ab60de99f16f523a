import json

import nibabel as nib
import pytest
import torch
from monai.transforms import CastToTyped, Compose

from custom_components.data import LoadScand, MemoryMappedDataset, read_datalist
from custom_components.errors import InputError
from custom_components.networks import SegmentationNetwork, load_weights, save_weights
from custom_components.probing import LinearProbe, probe
from custom_components.transforms import AnnotatedClassesd


@pytest.fixture
def dataset(mri_phantoms, tmp_path):
    items = read_datalist(mri_phantoms)[:2]
    classes = max(int(nib.load(item["label"]).get_fdata().max()) for item in items)
    steps = [LoadScand(["image", "label"]), AnnotatedClassesd(classes), CastToTyped("label", torch.uint8)]
    return MemoryMappedDataset(items, Compose(steps), tmp_path / "cache", progress=False)


def network_for(dataset, **options):
    torch.manual_seed(0)
    return SegmentationNetwork(len(dataset[0]["annotated"]), base_channels=4, num_scales=3, **options)


def test_only_the_head_changes_and_the_file_has_it(dataset, tmp_path):
    network = network_for(dataset)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    LinearProbe(network, dataset, tmp_path / "model.pt", tmp_path, settings={"data": "phantoms"}).run()
    changed = {key.split(".")[0] for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"head"}
    other = network_for(dataset)
    load_weights(other, tmp_path / "model.pt")
    torch.testing.assert_close(other.head.layers[0].bias, network.head.layers[0].bias, rtol=1e-3, atol=1e-3)
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["data"] == "phantoms" and record["selection"] == "linear probe"


def test_a_second_probe_reads_the_vectors_that_the_first_one_made(dataset, tmp_path, monkeypatch):
    made = []
    original = probe.vectors_at
    monkeypatch.setattr(probe, "vectors_at", lambda *args, **options: made.append(1) or original(*args, **options))
    network = network_for(dataset)
    for expected in (2, 2):
        LinearProbe(network, dataset, tmp_path / "model.pt", tmp_path).run()
        assert len(made) == expected
    with torch.no_grad():
        network.backbone.first_conv.bias.add_(1)  # another backbone has other vectors
    LinearProbe(network, dataset, tmp_path / "model.pt", tmp_path).run()
    assert len(made) == 4


def test_many_scans_share_the_limit_of_vectors(dataset, tmp_path, caplog):
    caplog.set_level("INFO")
    LinearProbe(network_for(dataset), dataset, tmp_path / "model.pt", tmp_path, max_vectors=200).run()
    (line,) = [message for message in caplog.messages if "vectors of 2 scans" in message]
    assert int(line.split()[2]) <= 200


def test_a_nonlinear_head_is_refused(dataset, tmp_path):
    network = network_for(dataset, head="nonlinear")
    with pytest.raises(ValueError, match="must be linear but is NonLinearHead"):
        LinearProbe(network, dataset, tmp_path / "model.pt", tmp_path).run()


def test_the_start_of_a_fine_tuning_may_read_only_the_first_scans(dataset, tmp_path, monkeypatch):
    made = []
    original = probe.vectors_at
    monkeypatch.setattr(probe, "vectors_at", lambda *args, **options: made.append(1) or original(*args, **options))
    network = network_for(dataset)
    before = network.head.layers[0].bias.clone()
    fitted = LinearProbe(network, dataset, tmp_path / "model.pt", tmp_path).fit(max_scans=1)
    assert fitted is network and len(made) == 1 and not torch.equal(before, network.head.layers[0].bias)
    assert not (tmp_path / "model.pt").exists()


def test_an_anchored_probe_starts_from_the_anchor_every_time(dataset, tmp_path):
    network = network_for(dataset)
    anchor = {name: value.clone() for name, value in network.head.state_dict().items()}
    path = tmp_path / "model.pt"
    LinearProbe(network, dataset, path, tmp_path, anchor=anchor).fit()
    first = {name: value.clone() for name, value in network.head.state_dict().items()}
    second = LinearProbe(network, dataset, path, tmp_path, anchor=anchor).fit().head.state_dict()
    torch.testing.assert_close(second, first)
    assert any(not torch.equal(first[name], anchor[name]) for name in anchor)


def test_the_network_of_a_training_is_not_replaced_unless_an_annotator_goes_on_from_it(dataset, tmp_path):
    save_weights(network_for(dataset), tmp_path / "model.pt", {"steps": 300, "selection": "best"})
    kept = (tmp_path / "model.pt").read_bytes()
    with pytest.raises(InputError, match="model.pt: is the network of a training of 300 steps"):
        LinearProbe(network_for(dataset), dataset, tmp_path / "model.pt", tmp_path).run()
    assert (tmp_path / "model.pt").read_bytes() == kept
    (tmp_path / "stopped" / "checkpoints").mkdir(parents=True)
    (tmp_path / "stopped" / "checkpoints" / "last.pt").touch()
    with pytest.raises(InputError, match="last.pt: is of a training that was stopped and has yet to write its network"):
        LinearProbe(network_for(dataset), dataset, tmp_path / "stopped" / "model.pt", tmp_path).run()
    for replace in (True, False):  # then it is a probe's, which another one may replace
        LinearProbe(network_for(dataset), dataset, tmp_path / "model.pt", tmp_path, replace=replace).run()
        assert json.loads((tmp_path / "model.json").read_text())["selection"] == "linear probe"
