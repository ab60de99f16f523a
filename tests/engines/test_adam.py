import copy

import torch
import torch.nn.functional as F
from ignite.engine import Engine

from custom_components.engines import FusedAdam
from custom_components.handlers import GradientClipping
from custom_components.inferers import TiledInferer
from custom_components.networks import SegmentationNetwork


def train(network, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(network(torch.randn(8, 5, generator=generator)), torch.ones(8, 3)).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_it_takes_the_steps_of_adam():
    torch.manual_seed(0)
    network = torch.nn.Linear(5, 3)
    other = copy.deepcopy(network)
    ours = train(network, FusedAdam(network.parameters(), 1e-2), 50)
    theirs = train(other, torch.optim.Adam(other.parameters(), 1e-2, foreach=False), 50)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_step_is_a_change_that_can_be_seen():
    network = torch.nn.Linear(5, 3)
    train(network, FusedAdam(network.parameters(), 1e-2), 2)
    assert all(parameter._version >= 2 for parameter in network.parameters())


def test_a_frozen_backbone_is_validated_with_the_head_of_the_moment():
    """The head's update is all that changes; a copy kept for inference must not be that of the start."""
    torch.manual_seed(0)
    network = SegmentationNetwork(num_classes=2, base_channels=4, num_scales=3)
    network.backbone.requires_grad_(False).eval()
    network.head.eval()
    optimizer, inferer = FusedAdam(network.head.parameters(), 0.1), TiledInferer((16, 16, 16))
    image = torch.rand(1, 1, 16, 16, 16)

    def logits():
        with torch.no_grad():
            return inferer(image, network).float()

    before = logits()
    network(image).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        expected = network(image)
    assert not torch.allclose(logits(), before, atol=1e-3)
    torch.testing.assert_close(logits(), expected, rtol=1e-2, atol=1e-2)


def test_it_goes_on_from_an_adam_that_is_not_fused_and_stays_fused():
    torch.manual_seed(0)
    network = torch.nn.Linear(5, 3)
    plain = torch.optim.Adam(network.parameters(), 1e-2, foreach=False)
    train(network, plain, 5)
    other = copy.deepcopy(network)
    fused = FusedAdam(other.parameters(), 3.0)
    fused.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert fused.param_groups[0]["fused"] is True and fused.param_groups[0]["lr"] == 1e-2
    assert torch.allclose(train(other, fused, 5, seed=1), train(network, plain, 5, seed=1), atol=1e-5)


def test_it_goes_on_from_moments_that_lie_otherwise_in_memory():
    def steps(convolution, optimizer, count, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            optimizer.zero_grad()
            convolution(torch.randn(2, 8, 5, 5, 5, generator=generator)).square().mean().backward()
            optimizer.step()
        return convolution.weight.detach().contiguous()

    torch.manual_seed(0)
    convolution = torch.nn.Conv3d(8, 16, 3)
    plain = torch.optim.Adam(convolution.parameters(), 1e-2, foreach=False)
    steps(convolution, plain, 3, seed=0)
    other = copy.deepcopy(convolution)
    fused = FusedAdam(other.parameters(), 1e-2)
    fused.load_state_dict(copy.deepcopy(plain.state_dict()))
    other.to(memory_format=torch.channels_last_3d)  # after the state was loaded, as the bundles' configs do
    assert other.weight.stride() != fused.state[other.weight]["exp_avg"].stride()
    found, expected = steps(other, fused, 3, seed=1), steps(convolution, plain, 3, seed=1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_clipping_is_the_same_where_mixed_precision_leaves_unscaling_to_the_optimiser():
    found = []
    for scaled in (False, True):
        torch.manual_seed(0)
        network = torch.nn.Linear(5, 3)
        optimizer = FusedAdam(network.parameters(), 1e-2, eps=1.0)  # so that the size of the gradient matters
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)

        def step(engine, batch, network=network, optimizer=optimizer, scaler=scaler):
            scaler.scale(F.mse_loss(network(torch.ones(8, 5)), torch.full((8, 3), 9.0))).backward()
            scaler.step(optimizer)

        engine = Engine(step)
        engine.optimizer = optimizer
        GradientClipping(0.01).attach(engine)
        engine.run([0])
        found.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.allclose(found[0], found[1], rtol=1e-6)


def test_bfloat16_is_not_scaled_and_float16_is():
    for dtype, scaled in ((torch.bfloat16, False), (torch.float16, True)):
        engine = Engine(lambda engine, batch: None)
        engine.optimizer = FusedAdam(torch.nn.Linear(5, 3).parameters())
        engine.scaler, engine.amp_kwargs = torch.amp.GradScaler("cpu"), {"dtype": dtype}
        GradientClipping().attach(engine)
        engine.run([0])
        assert engine.scaler.is_enabled() is scaled
