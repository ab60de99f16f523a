import copy

import pytest
import torch

from custom_components.networks import SegmentationNetwork, WeightsError, load_weights, save_weights


def network(classes, **options):
    return SegmentationNetwork(classes, base_channels=4, num_scales=3, **options)


@pytest.mark.parametrize("head", ["linear", "nonlinear"])
def test_a_loaded_state_dict_decides_the_number_of_classes_where_that_is_asked_for(head):
    trained = network(5, head=head).eval()
    # MONAI Label copies the network before it loads into it
    served = copy.deepcopy(network(2, head=head, adapt_classes=True)).eval()
    served.load_state_dict(trained.state_dict())
    image = torch.rand(1, 1, 9, 8, 7)
    torch.testing.assert_close(served(image), trained(image))


def test_otherwise_another_number_of_classes_is_an_error(tmp_path):
    save_weights(network(5), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="does not fit this network"):
        load_weights(network(2), tmp_path / "model.pt")
    assert load_weights(network(2, adapt_classes=True), tmp_path / "model.pt").head.layers[0].out_channels == 5
