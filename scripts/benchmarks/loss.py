"""InfoNCE: all pairs of a batch as negatives, and the pairs of the same scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from custom_components.losses import InfoNCE

from .settings import Row, Settings, require
from .timing import memory_beside, time_beside

CHANNELS = 128
TEMPERATURE = 0.1


def dense_info_nce(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The whole matrix of similarities, and the cross-entropy of its rows; `first`, `second` (M, E)."""
    z = torch.cat([first, second])
    rows = torch.arange(len(z), device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(rows[:, None] == rows, float("-inf"))
    return F.cross_entropy(similarity, rows.roll(len(first)))


def dense_by_scan(first: Tensor, second: Tensor) -> Tensor:
    """One scan after the other; `first`, `second` (N, V, E)."""
    return torch.stack([dense_info_nce(*views) for views in zip(first, second, strict=True)]).mean()


def dense_all(first: Tensor, second: Tensor) -> Tensor:
    """All scans together."""
    return dense_info_nce(first.flatten(0, 1), second.flatten(0, 1))


def embeddings(settings: Settings, scans: int, voxels: int) -> tuple[Tensor, Tensor]:
    """Random vectors of length 1, (N, V, E) each, whose positives resemble each other."""
    generator = torch.Generator().manual_seed(0)
    first, other = torch.randn(2, scans, voxels, CHANNELS, generator=generator)
    second = first + 0.5 * other
    pair = [F.normalize(z, dim=-1).to(settings.device).requires_grad_() for z in (first, second)]
    return pair[0], pair[1]


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "streamed": InfoNCE(TEMPERATURE, "batch"),
    "dense": dense_all,
    "batched": InfoNCE(TEMPERATURE),
    "loop": dense_by_scan,
}


def step(settings: Settings, kind: str, scans: int, voxels: int) -> Callable[[], None]:
    """The call that is measured: the loss and its gradient."""
    views = embeddings(settings, scans, voxels)
    loss = LOSSES[kind]
    # what the libraries keep for themselves is no part of the loss
    loss(views[0][:, :8], views[1][:, :8]).backward()

    def call() -> None:
        for view in views:
            view.grad = None
        loss(*views).backward()

    return call


def check_equal(settings: Settings) -> None:
    """Loss and gradient are those of the dense version in float64, to 1e-5."""
    views = embeddings(settings, 3, 500)
    for ours, reference in (("streamed", "dense"), ("batched", "loop")):
        loss, gradient = _loss_and_gradient(ours, views)
        exact_loss, exact = _loss_and_gradient(reference, [view.double() for view in views])
        error = ((gradient - exact).norm() / exact.norm()).item()
        require(abs(loss - exact_loss) < 1e-5 * exact_loss, f"the loss is {loss} and not {exact_loss}")
        require(error < 1e-5, f"the gradient differs from float64 by {error}")


def _loss_and_gradient(kind: str, views: Sequence[Tensor]) -> tuple[float, Tensor]:
    leaves = [view.detach().requires_grad_() for view in views]
    loss = LOSSES[kind](leaves[0], leaves[1])
    return loss.item(), torch.cat(torch.autograd.grad(loss, leaves)).double()


def run(settings: Settings) -> Iterator[Row]:
    """Time and memory with the gradient, of ours and of the dense version."""
    check_equal(settings)
    scans, voxels = (5, 512) if settings.quick else (10, 1024)
    size = f"{scans * voxels} pairs, {CHANNELS} channels"
    repeats = 10 if settings.device == "cuda" else 3
    for name, ours, reference in (("all_batch", "streamed", "dense"), ("same_scan", "batched", "loop")):
        calls = step(settings, ours, scans, voxels), step(settings, reference, scans, voxels)
        yield time_beside(f"loss/{name}_time", calls, settings, size, repeats=repeats)
        kinds = [(kind, scans, voxels) for kind in (ours, reference)]
        yield memory_beside(f"loss/{name}_memory", step, kinds, settings, size)
