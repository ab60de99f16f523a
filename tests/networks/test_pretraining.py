import pytest
import torch
import torch.nn.functional as F

from custom_components.networks import DenseSSLNetwork


def small(**kwargs):
    torch.manual_seed(0)
    return DenseSSLNetwork(base_channels=4, num_scales=3, **kwargs).eval()


@pytest.mark.parametrize("projection_channels", [8, 0])
def test_embeddings_are_the_projected_dense_features_at_the_voxels(projection_channels):
    network = small(projection_channels=projection_channels)
    image = torch.randn(2, 1, 9, 7, 6)
    voxels = torch.stack([torch.randint(0, s, (2, 5)) for s in (9, 7, 6)], -1)
    voxels[1, 3:] = -1
    embeddings, restored = network(image, voxels)
    dense = network(image)
    assert dense.shape == (2, 24 if projection_channels else 28, 9, 7, 6)
    assert restored.shape == image.shape
    for n in range(2):
        for v in range(5):
            h, w, d = voxels[n, v].tolist()
            if h < 0:
                assert (embeddings[n, v] == 0).all()
            else:
                expected = network.projector(dense[n, :, h, w, d][None])[0]
                assert torch.allclose(embeddings[n, v], expected, atol=1e-5)
                assert torch.allclose(embeddings[n, v].norm(), torch.tensor(1.0))


def test_one_scale_can_be_had_alone():
    image = torch.randn(1, 1, 9, 7, 6)
    every, coarse = small(projection_channels=8), small(projection_channels=8, output_scale=2)
    coarse.load_state_dict(every.state_dict())
    assert torch.equal(coarse(image), every(image)[:, 16:])


def test_projections_are_trained_unless_asked_not_to_be():
    for trainable in (True, False):
        network = small(projection_channels=8, trainable_projections=trainable)
        embeddings, _ = network(torch.randn(1, 1, 8, 8, 8), torch.randint(0, 8, (1, 9, 3)))
        embeddings[..., 0].sum().backward()
        assert (network.projection.layers[1].weight.grad is not None) == trainable
        assert network.backbone.first_conv.weight.grad.abs().sum() > 0


def test_every_scale_reaches_the_embedding():
    network = small(projection_channels=8)
    embeddings, _ = network(torch.randn(1, 1, 8, 8, 8), torch.randint(0, 8, (1, 9, 3)))
    F.mse_loss(embeddings, torch.randn_like(embeddings)).backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in network.projection.layers)
