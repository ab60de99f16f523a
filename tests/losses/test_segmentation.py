import pytest
import torch

from custom_components.errors import InputError
from custom_components.losses import PartialLabelLoss


def slow_loss(logits, label, annotated, smooth=1.0, positive_weight=1.0):
    """Class by class in float64, straight from the definition."""
    n, k = logits.shape[:2]
    terms, dices = [], []
    for c in range(k):
        overlap = volume = 0.0
        seen = False
        for i in range(n):
            if not annotated[i, c]:
                continue
            seen = True
            p, t = torch.sigmoid(logits[i, c]), (label[i, 0] == c + 1).double()
            terms.append(-(positive_weight * t * p.log() + (1 - t) * (1 - p).log()).mean())
            overlap = overlap + (p * t).sum()
            volume = volume + p.sum() + t.sum()
        if seen:
            dices.append(1 - (2 * overlap + smooth) / (volume + smooth))
    return torch.stack(terms).mean() + torch.stack(dices).mean()


def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 3, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 4, (2, 1, 4, 5, 3), generator=generator)
    return logits, label


@pytest.mark.parametrize("positive_weight", [1.0, 10.0])
def test_loss_equals_the_slow_definition(positive_weight):
    logits, label = example()
    annotated = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss = PartialLabelLoss(positive_weight=positive_weight)(logits, {"label": label, "annotated": annotated})
    expected = slow_loss(logits, label, annotated, positive_weight=positive_weight)
    assert torch.allclose(loss, expected, rtol=1e-10)


@pytest.mark.parametrize("wrong", [0, -1, float("nan")])
def test_a_weight_that_is_not_above_0_is_refused(wrong):
    with pytest.raises(InputError, match="positive_weight must be above 0"):
        PartialLabelLoss(positive_weight=wrong)


def test_everything_counts_as_annotated_by_default():
    logits, label = example()
    assert torch.equal(
        PartialLabelLoss()(logits, {"label": label}),
        PartialLabelLoss()(logits, {"label": label, "annotated": torch.ones(2, 3)}),
    )


def test_a_class_that_is_not_annotated_gets_no_gradient_and_its_labels_do_not_matter():
    logits, label = example()
    logits.requires_grad_()
    annotated = torch.tensor([[1, 1, 0], [1, 1, 1]])
    loss = PartialLabelLoss()(logits, {"label": label, "annotated": annotated})
    loss.backward()
    assert (logits.grad[0, 2] == 0).all() and (logits.grad[1, 2] != 0).all()
    other = label.clone()
    other[0][other[0] == 3] = 0
    assert torch.equal(PartialLabelLoss()(logits, {"label": other, "annotated": annotated}), loss)


def test_nothing_annotated_gives_zero_and_can_be_differentiated():
    logits, label = example()
    logits.requires_grad_()
    loss = PartialLabelLoss()(logits, {"label": label, "annotated": torch.zeros(2, 3)})
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def test_a_label_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="label is"):
        PartialLabelLoss()(torch.zeros(1, 2, 4, 4, 4), {"label": torch.zeros(1, 1, 4, 4, 3)})
