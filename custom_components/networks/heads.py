"""Heads that turn a feature pyramid into logits, for probing and for fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from .fpn import ResidualBlock, upsample_to

# Every class starts at this probability in every voxel. From 0.5, a convolution's default, the many background voxels
# push all logits down first, and small organs may stay there. Source: Lin et al. 2017 (arXiv 1708.02002), section 4.1.
FOREGROUND_PRIOR = 0.01


PRIOR_LOGIT = math.log(FOREGROUND_PRIOR / (1 - FOREGROUND_PRIOR))


def _start_at_prior(layer: nn.Module) -> None:
    nn.init.constant_(layer.bias, PRIOR_LOGIT)  # type: ignore[arg-type]


class LinearHead(nn.Module):
    """A linear classifier of the concatenated, up-sampled scales.

    It is written as one 1x1x1 convolution a scale (bias on the finest only), summed from coarse to fine with
    nearest-neighbour up-sampling, which gives the same logits without ever building the concatenation.

    Input a pyramid of `num_scales` tensors `(N, base_channels * 2**i, ...)`, fine to coarse; output logits
    `(N, num_classes, H, W, D)`. Source: arXiv 2307.14725, section 3.3.
    """

    def __init__(self, base_channels: int, num_scales: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv3d(base_channels * 2**i, num_classes, 1, bias=i == 0) for i in range(num_scales)]
        )
        _start_at_prior(self.layers[0])

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        logits = self.layers[-1](pyramid[-1])
        for layer, features in zip(list(self.layers)[-2::-1], pyramid[-2::-1]):
            logits = upsample_to(logits, features.shape[2:]) + layer(features)
        return logits


class NonLinearHead(nn.Module):
    """A small decoder of 1x1x1 convolutions: non-linear, but it sees no neighbouring voxel.

    From coarse to fine: up-sample, add the scale through a 1x1x1 convolution, one 1x1x1 residual block; a last 1x1x1
    convolution gives the logits. Shapes as in `LinearHead`. Source: arXiv 2307.14725, section 3.3.
    """

    def __init__(self, base_channels: int, num_scales: int, num_classes: int) -> None:
        super().__init__()
        widths = [base_channels * 2**i for i in range(num_scales)]
        steps = list(zip(widths[:-1], widths[1:]))[::-1]
        self.bottom_block = ResidualBlock(widths[-1], widths[-1], kernel_size=1)
        self.up_blocks = nn.ModuleList([nn.Sequential(nn.Conv3d(coarse, fine, 1)) for fine, coarse in steps])
        self.skip_blocks = nn.ModuleList([nn.Conv3d(fine, fine, 1) for fine, _ in steps])
        self.right_blocks = nn.ModuleList([ResidualBlock(fine, fine, kernel_size=1) for fine, _ in steps])
        self.final_block = nn.Conv3d(base_channels, num_classes, 1)
        _start_at_prior(self.final_block)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        x = self.bottom_block(pyramid[-1])
        for up, skip, right, features in zip(self.up_blocks, self.skip_blocks, self.right_blocks, pyramid[-2::-1]):
            x = right(upsample_to(up(x), features.shape[2:]) + skip(features))
        return self.final_block(x)
