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


@pytest.mark.parametrize("head", ["linear", "nonlinear"])
def test_checkpointing_changes_neither_the_names_nor_the_gradients(head):
    image = torch.randn(2, 1, 13, 8, 9, generator=torch.Generator().manual_seed(0))
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        trained = network(3, head=head, checkpointing=checkpointing)
        assert trained.backbone.bottom_block.checkpointing is checkpointing
        logits = trained(image)
        (logits**2).sum().backward()
        gradients = {name: parameter.grad for name, parameter in trained.named_parameters()}
        found.append((logits, gradients, trained.state_dict()))
    (plain_logits, *plain), (logits, *checkpointed) = found
    assert torch.equal(logits, plain_logits)
    for expected, values in zip(plain, checkpointed, strict=True):
        assert values.keys() == expected.keys()
        assert all(torch.equal(values[key], expected[key]) for key in expected)
