"""The network of self-supervised pre-training: backbone, balanced projections, projector, restoration head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fpn import FPN3d, features_at


class BalancedProjection(nn.Module):
    """Project every scale to the same number of channels, so that none outweighs another.

    Args:
        in_channels: channels of each scale, fine to coarse.
        out_channels: channels of every scale after its 1x1x1 convolution.
        trainable: False keeps the random initial projections, as the reference implementation did by leaving them out
            of the optimiser; an ablation, not a recommendation.

    Source: arXiv 2401.06473, section 2.2.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 32, trainable: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv3d(channels, out_channels, 1) for channels in in_channels])
        self.requires_grad_(trainable)
        self.out_channels = out_channels * len(self.layers)

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Pyramid in, pyramid of `(N, out_channels, H_i, W_i, D_i)` out."""
        return [layer(features) for layer, features in zip(self.layers, pyramid)]

    def project_vectors(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The same on vectors `(N, V, C_i)` that were read from the pyramid: far fewer than its voxels."""
        convolutions = cast("list[nn.Conv3d]", list(self.layers))
        return [F.linear(v, conv.weight.flatten(1), conv.bias) for conv, v in zip(convolutions, vectors)]


class Projector(nn.Module):
    """Linear, BN, ReLU, Linear, BN, ReLU, Linear, L2-normalise; vectors `(M, C)` to `(M, out_channels)` of length 1."""

    def __init__(self, in_channels: int, out_channels: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_channels, in_channels),
            nn.BatchNorm1d(in_channels),
            nn.ReLU(),
            nn.Linear(in_channels, in_channels),
            nn.BatchNorm1d(in_channels),
            nn.ReLU(),
            nn.Linear(in_channels, out_channels),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(self.layers(vectors), dim=-1)


class DenseSSLNetwork(nn.Module):
    """Backbone with the heads of pre-training.

    Args:
        in_channels, base_channels, num_scales: as in `FPN3d`.
        projection_channels: channels of every scale in the balanced representation; 0 concatenates the raw pyramid,
            which is vox2vec's representation.
        trainable_projections: see `BalancedProjection`.
        embedding_channels: length of the contrastive embedding.
        output_scale: None gives the whole representation; i gives scale i alone, at full resolution.
        checkpointing: as in `FPN3d.set_checkpointing`.

    Source: arXiv 2401.06473, sections 2.2 and 2.3.
    """

    def __init__(
        self,
        in_channels: int = 1,
        base_channels: int = 32,
        num_scales: int = 5,
        projection_channels: int = 32,
        trainable_projections: bool = True,
        embedding_channels: int = 128,
        output_scale: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.output_scale = output_scale
        self.backbone = FPN3d(in_channels, base_channels, num_scales)
        self.backbone.set_checkpointing(checkpointing)
        self.projection: BalancedProjection | None = None
        feature_channels = sum(self.backbone.channels)
        if projection_channels:
            self.projection = BalancedProjection(self.backbone.channels, projection_channels, trainable_projections)
            feature_channels = self.projection.out_channels
        self.projector = Projector(feature_channels, embedding_channels)
        self.restoration = nn.Conv3d(base_channels, in_channels, 1)

    def forward(self, x: Tensor, voxels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Dense features of an image, or, with `voxels`, what the pre-training loss needs.

        Args:
            x: image `(N, C, H, W, D)`.
            voxels: `(N, V, 3)` positions in x; rows of -1 are padding.

        Returns:
            Without `voxels`: the voxel-wise representation `(N, F, H, W, D)`, scales concatenated fine to coarse, each
            up-sampled with the nearest neighbour. With `voxels`: embeddings `(N, V, E)` of length 1 (of padding rows:
            zero) and the restored image `(N, C, H, W, D)`. One `forward` serves both because distributed training
            synchronises gradients only through it.
        """
        pyramid = self.backbone(x)
        if voxels is None:
            return self.dense_features(pyramid)
        return self.embed(pyramid, voxels), self.restoration(pyramid[0])

    def dense_features(self, pyramid: Sequence[Tensor]) -> Tensor:
        """The voxel-wise representation `(N, F, H, W, D)` of a pyramid."""
        if self.projection is not None:
            pyramid = self.projection(pyramid)
        size = pyramid[0].shape[2:]
        scales = []
        for i, features in enumerate(pyramid):
            if self.output_scale not in (None, i):
                continue
            # repeating and cropping is index // 2**i, the rule that `features_at` follows
            for axis in (2, 3, 4):
                features = features.repeat_interleave(2**i, dim=axis).narrow(axis, 0, size[axis - 2])
            scales.append(features)
        return torch.cat(scales, dim=1)

    def embed(self, pyramid: Sequence[Tensor], voxels: Tensor) -> Tensor:
        """Contrastive embeddings `(N, V, E)` at voxels `(N, V, 3)`; padding rows (-1) stay out of the statistics."""
        valid = voxels[..., 0] >= 0
        found = self.embed_vectors([vectors[valid] for vectors in features_at(pyramid, voxels)])
        embeddings = found.new_zeros(*valid.shape, found.shape[-1])
        embeddings[valid] = found
        return embeddings

    def embed_vectors(self, vectors: Sequence[Tensor]) -> Tensor:
        """Contrastive embeddings `(M, E)` of the backbone's vectors `(M, C_i)` of each scale at M voxels."""
        if self.projection is not None:
            vectors = self.projection.project_vectors(vectors)
        return self.projector(torch.cat(list(vectors), dim=-1))
