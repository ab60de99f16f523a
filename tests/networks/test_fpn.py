import pytest
import torch
import torch.nn.functional as F

from custom_components.networks import FPN3d, features_at


def reference_forward(state, x, num_scales):
    """The backbone written a second time with functional calls on the published parameter names, in evaluation mode."""

    def conv(name, x):
        weight = state[f"{name}.weight"]
        return F.conv3d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(name, x):
        values = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *values)

    def stack(name, x):
        for j in range(2):
            block = f"{name}.layers.{j}.layers"
            y = conv(f"{block}.2", F.relu(norm(f"{block}.0", x)))
            x = x + conv(f"{block}.5", F.relu(norm(f"{block}.3", y)))
        return x

    x = conv("first_conv", x)
    left = []
    for i in range(num_scales - 1):
        x = stack(f"left_blocks.{i}", x)
        left.append(x)
        x = conv(f"down_blocks.{i}.1", F.max_pool3d(x, 2, ceil_mode=True))
    pyramid = [stack("bottom_block", x)]
    for i in range(num_scales - 1):
        finer = left[num_scales - 2 - i]
        up = F.interpolate(conv(f"up_blocks.{i}.0", pyramid[0]), scale_factor=2)
        h, w, d = finer.shape[2:]
        pyramid.insert(0, stack(f"right_blocks.{i}", up[:, :, :h, :w, :d] + conv(f"skip_blocks.{i}", finer)))
    return pyramid


@pytest.mark.parametrize("size", [(16, 16, 16), (13, 7, 9), (1, 1, 1)])
def test_pyramid_equals_a_functional_reference_on_the_published_names(size):
    torch.manual_seed(0)
    network = FPN3d(1, 4, 4).double()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    network.eval()
    x = torch.randn(2, 1, *size, dtype=torch.float64)
    expected = reference_forward(network.state_dict(), x, 4)
    pyramid = network(x)
    assert [p.shape[1] for p in pyramid] == [4, 8, 16, 32]
    for i, (ours, theirs) in enumerate(zip(pyramid, expected)):
        assert list(ours.shape[2:]) == [-(-s // 2**i) for s in size]
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize(("base", "scales", "millions"), [(32, 5, 47.57), (16, 6, 47.62), (16, 5, 11.90)])
def test_parameter_counts_are_the_published_ones(base, scales, millions):
    with torch.device("meta"):
        network = FPN3d(1, base, scales)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


def test_features_are_read_at_the_voxel_divided_by_the_stride():
    pyramid = [torch.randn(2, 3 * 2**i, -(-13 // 2**i), -(-7 // 2**i), -(-9 // 2**i)) for i in range(4)]
    voxels = torch.stack([torch.randint(0, s, (2, 11)) for s in (13, 7, 9)], -1)
    for i, vectors in enumerate(features_at(pyramid, voxels)):
        for n in range(2):
            for v in range(11):
                h, w, d = (voxels[n, v] // 2**i).tolist()
                assert torch.equal(vectors[n, v], pyramid[i][n, :, h, w, d])


def test_a_single_scale_is_a_network_too():
    assert [p.shape for p in FPN3d(2, 4, 1)(torch.zeros(2, 2, 3, 4, 5))] == [(2, 4, 3, 4, 5)]


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        FPN3d(1, 8, 0)


@pytest.mark.parametrize("compiled", [False, True])
def test_checkpointing_changes_neither_the_result_nor_the_gradients_nor_the_running_statistics(compiled):
    image = torch.randn(2, 1, 13, 8, 9, generator=torch.Generator().manual_seed(0))
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = FPN3d(base_channels=4, num_scales=3)
        network.set_checkpointing(checkpointing)
        run = torch.compile(network, backend="eager") if checkpointing and compiled else network
        pyramid = run(image)
        sum((features**2).sum() for features in pyramid).backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        found.append((dict(enumerate(pyramid)), gradients, network.state_dict()))
    for plain, checkpointed in zip(*found, strict=True):
        assert plain.keys() == checkpointed.keys()
        assert all(torch.equal(plain[key], checkpointed[key]) for key in plain)
    assert found[1][2]["bottom_block.layers.0.layers.0.num_batches_tracked"] == 1


def test_checkpointing_keeps_less_than_half_of_the_activations():
    def kept(checkpointing):
        network = FPN3d(base_channels=4, num_scales=3)
        network.set_checkpointing(checkpointing)
        sizes = {}

        def note(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            pyramid = network(torch.randn(1, 1, 16, 16, 16))
        del pyramid
        return sum(sizes.values())

    assert kept(True) < kept(False) / 2
