import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components.annotation import (
    PanelOptions,
    annotated_class_names,
    is_annotator_data,
    released_head,
    start_network,
)
from custom_components.data import DataError
from custom_components.networks import SegmentationNetwork, save_weights


def write(path, values, shape=(4, 5, 6)):
    voxels = np.zeros(shape, np.float32)
    voxels.flat[: len(values)] = values
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return str(path)


def entry(folder, values, shape=(4, 5, 6)):
    return {
        "image": write(folder / f"image_{len(values)}.nii.gz", [1, 2, 3]),
        "label": write(folder / f"label_{len(values)}.nii.gz", values, shape),
    }


def test_options_are_shown_but_no_request_needs_them():
    options = PanelOptions(run_id="run")
    shown = {"max_epochs": 50}
    shown.update(options)
    assert shown == {"max_epochs": 50, "run_id": "run"}
    assert {key: {}[key] for key in options.keys()} == {}


def test_entries_of_a_request_have_paths_and_nothing_else():
    assert is_annotator_data([{"image": "a", "label": "b"}]) and is_annotator_data([])
    assert not is_annotator_data([{"image": "a", "label": "b", "case": "a"}])


def test_values_after_the_bundles_classes_become_classes(tmp_path):
    items = [entry(tmp_path, [1, 2]), entry(tmp_path, [0, 1, 4])]
    assert annotated_class_names(items[:1], ["A", "B"]) == ["A", "B"]
    assert annotated_class_names(items, ["A", "B"]) == ["A", "B", "label 3", "label 4"]


def test_a_datalist_has_the_bundles_classes(tmp_path):
    assert annotated_class_names([{"case": "x", "image": "nowhere"}], ["A"]) == ["A"]


@pytest.mark.parametrize(
    ("values", "shape", "message"),
    [
        ([1, 0.5], (4, 5, 6), "whole numbers from 0 to 255 but are 0 to 1"),
        ([1, 300], (4, 5, 6), "but are 0 to 300"),
        ([1, 2], (4, 5, 7), r"image is \(4, 5, 6\) but label is \(4, 5, 7\)"),
    ],
)
def test_labels_that_cannot_be_trained_on_are_named(tmp_path, values, shape, message):
    with pytest.raises(DataError, match=message) as raised:
        annotated_class_names([entry(tmp_path, values, shape)], ["A"])
    assert str(tmp_path) in str(raised.value)


def test_a_request_without_labels_says_what_to_do():
    with pytest.raises(DataError, match="no labelled scan; save the label"):
        annotated_class_names([], ["A"])


def network(classes=2, seed=0, **options):
    torch.manual_seed(seed)
    return SegmentationNetwork(classes, base_channels=4, num_scales=2, **options)


def test_an_annotators_training_goes_on_from_the_network_in_use_and_keeps_the_released_one(tmp_path):
    weights = tmp_path / "model.pt"
    released = network()
    save_weights(released, weights, {"data": "released"})
    trained = start_network(network(seed=1), "nowhere.pt", weights, ["A", "B"], annotating=True)
    torch.testing.assert_close(trained.state_dict(), released.state_dict(), rtol=1e-2, atol=1e-3)
    first = (tmp_path / "released.pt").read_bytes()
    assert first == weights.read_bytes()
    save_weights(network(seed=2), weights)
    start_network(network(), None, weights, ["A", "B"], annotating=True)
    assert (tmp_path / "released.pt").read_bytes() == first


def test_with_another_number_of_classes_the_head_starts_anew(tmp_path):
    save_weights(network(2), tmp_path / "model.pt")
    more = network(5, seed=1)  # from the class names of the request
    head = {key: value.clone() for key, value in more.head.state_dict().items()}
    start_network(more, None, tmp_path / "model.pt", list("ABCDE"), annotating=True)
    torch.testing.assert_close(more.head.state_dict(), head)


def test_from_the_command_line_a_training_starts_from_the_pretrained_backbone(tmp_path):
    save_weights(network(seed=3), tmp_path / "backbone.pt")
    own = network(seed=4)
    start_network(own, tmp_path / "backbone.pt", tmp_path / "model.pt", ["A", "B"], annotating=False)
    torch.testing.assert_close(
        own.backbone.first_conv.weight, network(seed=3).backbone.first_conv.weight, rtol=1e-2, atol=1e-3
    )
    assert not (tmp_path / "released.pt").exists()


def halved(state):
    """As a weight file keeps it."""
    return {name: value.half() for name, value in state.items()}


def test_an_annotators_probe_stays_near_the_released_head_however_often_he_trains(tmp_path):
    weights, released, trained = tmp_path / "model.pt", network(), network()
    save_weights(released, weights)
    torch.nn.init.ones_(trained.head.layers[0].weight)
    for _ in range(2):
        start = start_network(network(seed=1), None, weights, ["A", "B"], annotating=True)
        torch.testing.assert_close(released_head(start, weights, True), halved(released.head.state_dict()))
        assert released_head(start, weights, annotating=False) is None
        save_weights(trained, weights)  # the same backbone, another head
    fine_tuned = network(seed=2)
    save_weights(fine_tuned, weights)
    start = start_network(network(seed=1), None, weights, ["A", "B"], annotating=True)
    torch.testing.assert_close(released_head(start, weights, True), halved(fine_tuned.head.state_dict()))


def test_no_head_is_kept_for_another_number_of_classes(tmp_path):
    weights = tmp_path / "model.pt"
    save_weights(network(), weights)
    more = start_network(network(seed=1), None, weights, ["A", "B", "C"], annotating=True)
    assert released_head(more, weights, annotating=True) is None
    # a fine-tuning with the third class, which is then given up: the head in use does not fit, and is no anchor
    save_weights(network(classes=3, seed=2), weights)
    again = start_network(network(seed=1), None, weights, ["A", "B"], annotating=True)
    assert released_head(again, weights, annotating=True) is None


def test_a_head_of_zeros_is_fitted_anew_even_after_a_training(tmp_path):
    weights, empty = tmp_path / "model.pt", network()
    for parameter in empty.head.parameters():
        torch.nn.init.zeros_(parameter)
    save_weights(empty, weights)
    start_network(network(seed=1), None, weights, ["A", "B"], annotating=True)
    save_weights(network(seed=2), weights)
    again = start_network(network(seed=3), None, weights, ["A", "B"], annotating=True)
    assert released_head(again, weights, annotating=True) is None
