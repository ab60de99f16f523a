"""The linear head that fits feature vectors best, found in seconds."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom_components.networks.heads import PRIOR_LOGIT, LinearHead

from .vectors import VoxelVectors


def weighted_loss(logits: Tensor, data: VoxelVectors) -> Tensor:
    """Binary cross-entropy + soft Dice of every class, as `PartialLabelLoss`, of voxels that stand for several.

    Args:
        logits: `(V, K)`.
        data: their labels, weights and annotated classes.

    Returns:
        A scalar: the mean over the classes that are annotated somewhere.
    """
    classes = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    target = (data.labels[:, None] == classes).to(logits)
    weights = data.weights[:, None] * data.annotated
    known = weights.sum(0) > 0
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    mean_entropy = (entropy * weights).sum(0) / weights.sum(0).clamp(min=1e-12)
    probability = logits.sigmoid()
    overlap = (probability * target * weights).sum(0)
    sizes = ((probability + target) * weights).sum(0)
    dice = (2 * overlap + 1) / (sizes + 1)
    return (mean_entropy + 1 - dice)[known].mean()


def fit_linear_head(
    head: LinearHead,
    data: VoxelVectors,
    steps: int = 200,
    learning_rate: float = 0.03,
    weight_decay: float = 1e-4,
    anchor: float | None = None,
) -> float:
    """Fit a linear head to feature vectors, all at once in every step, from a head of zeros or from the head as it is.

    The vectors are standardised, and that is folded into the head's weights.

    Args:
        head: is changed in place; takes the pyramid whose vectors these are.
        data: at least one voxel.
        steps: steps of Adam; the rate falls to zero along a cosine.
        learning_rate: the first rate, of standardised vectors.
        weight_decay: factor of the squared weights in the loss, without the bias.
        anchor: None starts from zeros. A number starts from the head as it is, and replaces `weight_decay`: the factor
            of the squared distance to that head, bias included. It is for a head that was trained on many more scans
            than these, which would otherwise be forgotten.

    Returns:
        The loss at the end.
    """
    mean, std = data.vectors.mean(0), data.vectors.std(0, correction=0).clamp(min=1e-6)
    standardised = VoxelVectors((data.vectors - mean) / std, data.labels, data.weights, data.annotated)
    layers = [cast(nn.Conv3d, layer) for layer in head.layers]
    num_classes = layers[0].out_channels
    if anchor is None:
        first_weight = data.vectors.new_zeros(num_classes, data.vectors.shape[1])
        first_bias = data.vectors.new_full((num_classes,), PRIOR_LOGIT)
    else:
        given = torch.cat([layer.weight.detach().flatten(1) for layer in layers], 1).to(data.vectors)
        first_weight = given * std
        first_bias = cast(Tensor, layers[0].bias).detach().to(data.vectors) + given @ mean
    weight, bias = first_weight.clone().requires_grad_(), first_bias.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = torch.zeros(())
    for _ in range(steps):
        logits = F.linear(standardised.vectors, weight, bias)
        loss = weighted_loss(logits, standardised)
        if anchor is None:
            loss = loss + weight_decay * weight.square().sum()
        else:
            loss = loss + anchor * ((weight - first_weight).square().sum() + (bias - first_bias).square().sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        unscaled = weight / std
        for layer, part in zip(layers, unscaled.split([layer.in_channels for layer in layers], 1)):
            layer.weight.copy_(part[:, :, None, None, None])
        cast(Tensor, layers[0].bias).copy_(bias - unscaled @ mean)
    return float(loss.detach())
