import pytest
import torch
from scipy.optimize import minimize

from custom_components.losses import PartialLabelLoss
from custom_components.networks import LinearHead
from custom_components.probing import VoxelVectors, fit_linear_head
from custom_components.probing.linear import weighted_loss


def test_with_every_voxel_the_loss_is_that_of_fine_tuning():
    torch.manual_seed(0)
    logits, label = torch.randn(1, 3, 4, 5, 6), torch.randint(4, (1, 1, 4, 5, 6))
    annotated = torch.tensor([[1.0, 1.0, 0.0]])
    expected = PartialLabelLoss()(logits, {"label": label, "annotated": annotated})
    count = label.numel()
    data = VoxelVectors(torch.zeros(count, 1), label.flatten(), torch.ones(count), annotated.bool().expand(count, 3))
    assert weighted_loss(logits[0].flatten(1).T, data).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_voxel_of_weight_two_counts_as_two():
    torch.manual_seed(0)
    logits, labels = torch.randn(20, 2), torch.randint(3, (20,))
    weights = torch.randint(1, 3, (20,)).float()
    annotated = torch.ones(20, 2, dtype=torch.bool)
    once = weighted_loss(logits, VoxelVectors(torch.zeros(20, 1), labels, weights, annotated))
    repeat = weights.long()
    rows = torch.arange(20).repeat_interleave(repeat)
    twice = weighted_loss(
        logits[rows], VoxelVectors(rows[:, None], labels[rows], torch.ones(len(rows)), annotated[rows])
    )
    assert once.item() == pytest.approx(twice.item(), rel=1e-5)


def test_separable_classes_are_found_and_the_head_gives_them_from_a_pyramid():
    torch.manual_seed(0)
    head = LinearHead(base_channels=4, num_scales=2, num_classes=2)
    vectors = torch.randn(5000, 12) * 5 + 3
    # class 1 is known from the fine scale, class 2 from the coarse one; never both
    vectors = vectors[(vectors[:, 1] < 6) | (vectors[:, 7] < 6)][:3000]
    labels = torch.where(vectors[:, 1] > 6, 1, torch.where(vectors[:, 7] > 6, 2, 0))
    data = VoxelVectors(vectors, labels, torch.ones(3000), torch.ones(3000, 2, dtype=torch.bool))
    fit_linear_head(head, data, steps=400, learning_rate=0.1)
    fine, coarse = vectors[:, :4].T.reshape(1, 4, 3000, 1, 1), vectors[:, 4:].T.reshape(1, 8, 3000, 1, 1)
    with torch.no_grad():
        logits = head.layers[0](fine) + head.layers[1](coarse)
    predicted = torch.where(logits.amax(1) > 0, logits.argmax(1) + 1, 0).flatten()
    assert (predicted == labels).float().mean() > 0.95


def test_a_class_that_is_annotated_in_no_scan_changes_nothing():
    torch.manual_seed(0)
    vectors, labels = torch.randn(200, 4), torch.randint(2, (200,))
    annotated = torch.tensor([True, False]).expand(200, 2)
    head = LinearHead(base_channels=4, num_scales=1, num_classes=2)
    fit_linear_head(head, VoxelVectors(vectors, labels, torch.ones(200), annotated), steps=20)
    assert head.layers[0].weight[1].abs().max() < 1e-6 and head.layers[0].weight[0].abs().max() > 0.01


def random_data(count=400, channels=12, classes=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, channels, generator=generator) * 3 + 2
    labels = torch.randint(classes + 1, (count,), generator=generator)
    return VoxelVectors(vectors, labels, torch.ones(count), torch.ones(count, classes, dtype=torch.bool))


def test_an_anchored_head_stays_where_it_was_if_nothing_may_move():
    torch.manual_seed(0)
    head = LinearHead(base_channels=4, num_scales=2, num_classes=2)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    fit_linear_head(head, random_data(), anchor=0.1, steps=0)
    torch.testing.assert_close(head.state_dict(), before, rtol=1e-4, atol=1e-4)


def test_the_anchor_is_the_weight_of_the_squared_distance():
    """The optimum of loss + anchor x distance, found by SciPy in float64."""
    torch.manual_seed(1)
    data, anchor = random_data(100), 0.05
    head = LinearHead(base_channels=4, num_scales=2, num_classes=2).requires_grad_(False)
    flat = torch.cat([layer.weight.flatten(1) for layer in head.layers], 1).double()
    exact = VoxelVectors(data.vectors.double(), data.labels, data.weights.double(), data.annotated)
    mean, std = exact.vectors.mean(0), exact.vectors.std(0, correction=0)
    start = torch.cat([flat * std, (head.layers[0].bias.double() + flat @ mean)[:, None]], 1)

    def objective(values):
        x = torch.tensor(values).reshape(start.shape).requires_grad_()
        logits = (exact.vectors - mean) / std @ x[:, :-1].T + x[:, -1]
        loss = weighted_loss(logits, exact) + anchor * (x - start).square().sum()
        return loss.item(), torch.autograd.grad(loss, x)[0].flatten().numpy()

    best = minimize(objective, start.flatten().numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    fit_linear_head(head, data, anchor=anchor, steps=2000, learning_rate=0.01)
    found = torch.cat([layer.weight.flatten(1) for layer in head.layers], 1).double()
    reached = torch.cat([found * std, (head.layers[0].bias.double() + found @ mean)[:, None]], 1)
    assert objective(reached.flatten().numpy())[0] == pytest.approx(best.fun, rel=1e-3)
    assert (reached - start).abs().max() > 0.01
