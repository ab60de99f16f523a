import pytest
import torch
import torch.nn.functional as F

from custom_components.losses import InfoNCE


def slow_info_nce(first, second, temperature, groups, near=lambda one, other: False):
    """One anchor at a time, straight from the definition, in float64; near pairs are no negatives."""
    losses = []
    for pairs in groups:
        z = [first[i] for i in pairs] + [second[i] for i in pairs]
        half = len(pairs)
        for a in range(len(z)):
            positive = (a + half) % len(z)
            others = [
                b for b in range(len(z)) if b == positive or (b != a and not near(pairs[a % half], pairs[b % half]))
            ]
            scores = [torch.dot(z[a], z[b]) / temperature for b in others]
            losses.append(torch.logsumexp(torch.stack(scores), 0) - torch.dot(z[a], z[positive]) / temperature)
    return torch.stack(losses).mean()


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("exclude_within", [0.0, 6.2])
@pytest.mark.parametrize("chunk", [3, 7, 4096])
@pytest.mark.parametrize("negatives", ["scan", "batch"])
def test_loss_and_gradient_equal_the_slow_definition(negatives, chunk, exclude_within):
    first, second = unit(3, 9, 8, seed=1).requires_grad_(), unit(3, 9, 8, seed=2).requires_grad_()
    valid = torch.ones(3, 9, dtype=torch.bool)
    valid[1, 5:] = False
    scan = torch.tensor([4, 9, 4])
    positions = torch.randint(0, 5, (3, 9, 3), generator=torch.Generator().manual_seed(3))
    spacing = torch.tensor([3.0, 1.0, 2.5])
    info_nce = InfoNCE(0.1, negatives, chunk, exclude_within, spacing.tolist())
    loss = info_nce(first, second, valid, scan, positions if exclude_within else None)
    gradients = torch.autograd.grad(loss, [first, second])

    def near(one, other):
        distance = ((positions[one] - positions[other]) * spacing).norm()
        return bool(scan[one[0]] == scan[other[0]] and distance < exclude_within)

    pairs = [(n, v) for n in range(3) for v in range(9) if valid[n, v]]
    groups = [[p for p in pairs if scan[p[0]] == s] for s in (4, 9)] if negatives == "scan" else [pairs]
    expected = slow_info_nce(first, second, 0.1, groups, near)
    assert (expected < slow_info_nce(first, second, 0.1, groups)) == (exclude_within > 0)
    assert torch.allclose(loss, expected, rtol=1e-12)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, [first, second])):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_exclusion_needs_positions_and_a_distance():
    with pytest.raises(ValueError, match="needs the positions"):
        InfoNCE(exclude_within=5.0)(unit(1, 4, 8), unit(1, 4, 8))
    with pytest.raises(ValueError, match="at least 0 mm"):
        InfoNCE(exclude_within=-1.0)


def test_a_scan_without_a_common_voxel_changes_nothing():
    first, second = unit(3, 4, 8, seed=1).requires_grad_(), unit(3, 4, 8, seed=2)
    valid = torch.tensor([[True] * 4, [False] * 4, [True] * 4])
    loss = InfoNCE()(first, second, valid, torch.tensor([1, 2, 3]))
    expected = slow_info_nce(first, second, 0.1, [[(n, v) for v in range(4)] for n in (0, 2)])
    assert torch.allclose(loss, expected, rtol=1e-12)
    (gradient,) = torch.autograd.grad(loss, first)
    assert torch.isfinite(gradient).all() and (gradient[1] == 0).all()


def test_padding_rows_have_no_gradient():
    first, second = unit(2, 4, 8).requires_grad_(), unit(2, 4, 8, seed=5)
    valid = torch.tensor([[True, True, False, False], [True, True, True, True]])
    InfoNCE()(first, second, valid).backward()
    assert (first.grad[0, 2:] == 0).all() and (first.grad[0, :2] != 0).any()


def test_no_voxel_at_all_gives_zero_and_can_be_differentiated():
    first = unit(2, 4, 8).requires_grad_()
    loss = InfoNCE()(first, unit(2, 4, 8), torch.zeros(2, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and (first.grad == 0).all()


@pytest.mark.parametrize("negatives", ["scan", "batch"])
def test_float32_gradient_stays_close_to_float64_at_thousands_of_voxels(negatives):
    first, second = unit(3, 1024, 32, seed=3), unit(3, 1024, 32, seed=4)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        x = first.to(dtype).clone().requires_grad_()
        InfoNCE(negatives=negatives)(x, second.to(dtype)).backward()
        gradients.append(x.grad.double())
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 1e-5


def test_autocast_does_not_lower_the_precision():
    first, second = unit(1, 64, 32, seed=3).float(), unit(1, 64, 32, seed=4).float()
    expected = InfoNCE()(first, second)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(InfoNCE()(first, second), expected)


def test_unknown_negatives_are_refused():
    with pytest.raises(ValueError, match="'scan' or 'batch'"):
        InfoNCE(negatives="patient")
