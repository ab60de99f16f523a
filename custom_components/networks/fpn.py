"""3D feature pyramid network: the backbone of every bundle.

Parameter names equal those of the two predecessors' checkpoints (vox2vec, arXiv 2307.14725; dense hierarchical
representations, arXiv 2401.06473), so that published weights load without a translation table.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class ResidualBlock(nn.Module):
    """Pre-activation residual block: BN, ReLU, conv, BN, ReLU, conv, plus the input.

    The input is added as it is, or through a 1x1x1 convolution where the number of channels changes.
    Input `(N, in_channels, H, W, D)`, output `(N, out_channels, H, W, D)`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        hidden = min(in_channels, out_channels)
        padding = kernel_size // 2
        self.layers = nn.Sequential(
            nn.BatchNorm3d(in_channels),
            nn.ReLU(),
            nn.Conv3d(in_channels, hidden, kernel_size, padding=padding),
            nn.BatchNorm3d(hidden),
            nn.ReLU(),
            nn.Conv3d(hidden, out_channels, kernel_size, padding=padding),
        )
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.skip(x)


class FrozenStatistics:
    """While it is entered, `module` normalises with the batch's statistics and leaves the running ones as they are."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None]
        self.kept: list[tuple[float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        self.kept = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            # not `track_running_stats = False`: then other tensors would be saved than in the first pass
            norm.momentum = 0.0
            norm.num_batches_tracked = torch.tensor(0, device=norm.weight.device)

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class ResidualStack(nn.Module):
    """Two residual blocks of the same width, one after the other.

    While `checkpointing` is True, a training step keeps only the input of each block and computes the block again on
    the way back; running statistics are updated once.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ResidualBlock(channels, channels) for _ in range(2)])
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpointed(layer, x)
            else:
                x = layer(x)
        return x


@torch.compiler.disable(recursive=False)  # torch.compile knows no `context_fn`; it takes the block by itself
def checkpointed(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's output; on the way back it is computed again, which does not update running statistics again."""
    return checkpoint(
        layer,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in a block is random
        context_fn=lambda: (nullcontext(), FrozenStatistics(layer)),
    )


def upsample_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Up-sample by two with the nearest neighbour and crop to `size`, the shape of the finer scale."""
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    return x[..., : size[0], : size[1], : size[2]]


class FPN3d(nn.Module):
    """Feature pyramid network with the shape of a U-Net.

    Args:
        in_channels: channels of the input image.
        base_channels: channels of the finest scale; scale i has `base_channels * 2**i`.
        num_scales: number of scales, at least 1.

    Input `(N, in_channels, H, W, D)` of any size; output a list from fine to coarse, scale i of shape
    `(N, base_channels * 2**i, ceil(H / 2**i), ceil(W / 2**i), ceil(D / 2**i))`. `base_channels=32, num_scales=5` is the
    "hierarchically balanced" setting of the paper (47.57 M parameters), `16, 6` is vox2vec's (47.62 M).

    Raises:
        ValueError: where a size is smaller than 1.

    Source: arXiv 2401.06473, section 2.2.
    """

    def __init__(self, in_channels: int = 1, base_channels: int = 32, num_scales: int = 5) -> None:
        super().__init__()
        if min(in_channels, base_channels, num_scales) < 1:
            raise ValueError(
                "FPN3d: in_channels, base_channels and num_scales must be at least 1, "
                f"but are {in_channels}, {base_channels} and {num_scales}"
            )
        self.in_channels, self.base_channels, self.num_scales = in_channels, base_channels, num_scales
        widths = self.channels
        steps = list(zip(widths[:-1], widths[1:]))
        self.first_conv = nn.Conv3d(in_channels, widths[0], 3, padding=1)
        self.left_blocks = nn.ModuleList([ResidualStack(fine) for fine, _ in steps])
        # nn.Sequential and its index 1 keep the published parameter name `down_blocks.I.1`
        self.down_blocks = nn.ModuleList(
            [nn.Sequential(nn.MaxPool3d(2, ceil_mode=True), nn.Conv3d(fine, coarse, 1)) for fine, coarse in steps]
        )
        self.bottom_block = ResidualStack(widths[-1])
        # likewise `up_blocks.I.0`
        self.up_blocks = nn.ModuleList([nn.Sequential(nn.Conv3d(coarse, fine, 1)) for fine, coarse in steps[::-1]])
        self.skip_blocks = nn.ModuleList([nn.Conv3d(fine, fine, 1) for fine, _ in steps[::-1]])
        self.right_blocks = nn.ModuleList([ResidualStack(fine) for fine, _ in steps[::-1]])

    @property
    def channels(self) -> list[int]:
        """Channels of each scale, fine to coarse."""
        return [self.base_channels * 2**i for i in range(self.num_scales)]

    def set_checkpointing(self, on: bool) -> None:
        """Turn activation checkpointing of the residual blocks on or off: a training step then takes about a third more
        time and far less memory, with the same result."""
        for module in self.modules():
            if isinstance(module, ResidualStack):
                module.checkpointing = on

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.first_conv(x)
        left = []
        for block, down in zip(self.left_blocks, self.down_blocks):
            x = block(x)
            left.append(x)
            x = down(x)
        x = self.bottom_block(x)
        pyramid = [x]
        for up, skip, right in zip(self.up_blocks, self.skip_blocks, self.right_blocks):
            # at full resolution these are the largest tensors there are: none lives longer than it is needed
            finer = left.pop()
            size, merged = finer.shape[2:], skip(finer)
            del finer
            merged += upsample_to(up(x), size)
            x = right(merged)
            pyramid.insert(0, x)
        return pyramid


def features_at(pyramid: Sequence[Tensor], voxels: Tensor) -> list[Tensor]:
    """Read each scale's feature vector at voxels of the full resolution (position `voxel // 2**i` in scale i).

    Args:
        pyramid: fine to coarse, scale i `(N, C_i, H_i, W_i, D_i)`.
        voxels: `(N, V, 3)` integer positions; a row of -1 stands for "no voxel" and reads voxel 0.

    Returns:
        One tensor `(N, V, C_i)` a scale.
    """
    voxels = voxels.clamp(min=0)
    rows = []
    for i, features in enumerate(pyramid):
        _, _, _, width, depth = features.shape
        index = voxels >> i
        flat = (index[..., 0] * width + index[..., 1]) * depth + index[..., 2]
        # move channels last first: one gather of whole vectors instead of one per channel
        table = features.flatten(2).transpose(1, 2)
        rows.append(torch.gather(table, 1, flat.unsqueeze(-1).expand(-1, -1, table.shape[-1])))
    return rows
