"""The triplet loss of FaceNet (Schroff et al. 2015, equation 3), normalised over the global batch.

Losses are summed up block by block, together with their gradient with respect to the embeddings, so that no list of all
triplets or distances is ever held: O(b x block) memory. Legend as in distances; t triplets of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facerec.training.distances import Anchors, Block, Distance, blocks
from facerec.training.gather import all_reduce, world
from facerec.training.mining import Columns, Miner, MiningConfig, mine_block

TOGETHER = 2**16
"""Triplets whose vectors are in memory at once: 32 MB for each of the three at d = 128."""


@dataclass(frozen=True)
class TripletSum:
    """The loss of this rank's anchors before it is normalised."""

    total: Tensor
    """Sum over active triplets, tied to the graph also where there is none."""
    active: Tensor
    """int64 scalar: triplets (with n_pair: pairs, with multi_similarity: anchors) with a loss above 0."""
    looked_at: Tensor
    """int64 scalar: anchor-positive pairs, with a negative or without; batch_all's triplets, multi_similarity's anchors."""
    d_ap: Tensor
    """Distances of anchors and positives of all triplets, detached, NaN for those that are not valid. Dense losses: of all
    pairs."""
    d_an: Tensor
    """The same of anchors and negatives. Dense losses: from each anchor to its nearest negative."""

    def __add__(self, other: TripletSum) -> TripletSum:
        """The sum over both's triplets."""
        return TripletSum(
            self.total + other.total,
            self.active + other.active,
            self.looked_at + other.looked_at,
            torch.cat([self.d_ap, other.d_ap]),
            torch.cat([self.d_an, other.d_an]),
        )


Numbers = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""The fields of TripletSum."""


class Gradient:
    """dL/d local [n, d] and dL/d everyone [b, d], summed up while the loss is."""

    def __init__(self, local: Tensor, everyone: Tensor) -> None:
        self.local, self.everyone = local, everyone
        self.to_local, self.to_everyone = torch.zeros_like(local), torch.zeros_like(everyone)

    def add_slope(self, rows: Tensor, slope: Tensor) -> None:
        """Of squared distances S from anchors ``rows`` to everyone, ``slope`` being G = dL/dS [r, b].

        With A the anchors and E all embeddings, dL/dA = 2 (rowsum(G) A - G E) and dL/dE = 2 (colsum(G) E - G^T A).
        """
        anchors = self.local[rows]
        self.to_local[rows] = 2 * (slope.sum(1)[:, None] * anchors - slope @ self.everyone)
        self.to_everyone += 2 * (slope.sum(0)[:, None] * self.everyone - slope.T @ anchors)

    def add_vectors(self, rows: Tensor, others: Tensor, vectors: Tensor) -> None:
        """Of t distances from anchors ``rows`` to ``others``: dL/d anchor [t, d], whose negative is dL/d other."""
        _add_rows(self.to_local, rows, vectors)
        _add_rows(self.to_everyone, others, -vectors)


def _add_rows(total: Tensor, rows: Tensor, vectors: Tensor) -> None:
    """total[rows] += vectors, in a fixed order: index_add is serial on a CPU, and index_put sorts on a GPU."""
    if total.device.type == "cpu":
        total.index_add_(0, rows, vectors)
    else:
        total.index_put_((rows,), vectors, accumulate=True)


def sum_blocks(
    anchors: Anchors, distance: Distance, block: int | None, loss: Callable[[Block, Gradient], Numbers]
) -> TripletSum:
    """The sum of ``loss`` over blocks of anchors; it also adds its gradient. fp32 at least, autocast off."""
    with torch.autocast(anchors.local.device.type, enabled=False):
        parts = blocks(anchors, distance, block)
        return TripletSum(*_Summed.apply(anchors.local, anchors.everyone, parts, loss))


class _Summed(torch.autograd.Function):
    """Loss and, in the same pass, its gradient."""

    @staticmethod
    def forward(
        ctx: Any, local: Tensor, everyone: Tensor, parts: Any, loss: Callable[[Block, Gradient], Numbers]
    ) -> tuple[Tensor, ...]:
        gradient = Gradient(local, everyone)
        total, *numbers = _added([loss(part, gradient) for part in parts])
        ctx.save_for_backward(gradient.to_local, gradient.to_everyone)
        ctx.mark_non_differentiable(*numbers)
        return (total, *numbers)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        to_local, to_everyone = ctx.saved_tensors
        return grads[0] * to_local, grads[0] * to_everyone, None, None


def _added(parts: list[Numbers]) -> Numbers:
    totals, active, looked_at, d_ap, d_an = zip(*parts, strict=True)
    total, *counts = (torch.stack(each).sum() for each in (totals, active, looked_at))
    return total, counts[0], counts[1], torch.cat(d_ap), torch.cat(d_an)


def triplet_sum(miner: Miner, anchors: Anchors, config: MiningConfig, block: int | None = None) -> TripletSum:
    """Sum of max(0, d_ap - d_an + margin), or of the soft margin, over the triplets that ``miner`` finds."""

    def loss(part: Block, gradient: Gradient) -> Numbers:
        columns = mine_block(miner, part, config.margin)
        pieces = zip(*(torch.split(column, TOGETHER) for column in columns), strict=True)
        return _added([_piece(piece, gradient, config) for piece in pieces])

    return sum_blocks(anchors, config.distance, block, loss)


def _piece(triplets: Columns, gradient: Gradient, config: MiningConfig) -> Numbers:
    """Loss and gradient of t triplets. Those that are not valid have neither, and are in no number."""
    rows, positives, negatives, paired, valid = triplets
    anchors = gradient.local[rows]
    to_positive, to_negative = anchors - gradient.everyone[positives], anchors - gradient.everyone[negatives]
    d_ap, d_an = (_length(each, config.distance) for each in (to_positive, to_negative))
    losses, slopes = penalty(d_ap - d_an, config)
    losses, slopes = torch.where(valid, losses, 0.0), torch.where(valid, slopes, 0.0)
    for others, vectors, distances, sign in (
        (positives, to_positive, d_ap, 2),
        (negatives, to_negative, d_an, -2),
    ):
        by_squared = sign * slope_by_squared(slopes, distances, config.distance)
        gradient.add_vectors(rows, others, vectors.mul_(by_squared[:, None]))
    d_ap, d_an = (torch.where(valid, each, torch.nan) for each in (d_ap, d_an))
    return losses.sum(), (losses > 0).sum(), paired.sum(), d_ap, d_an


def penalty(gap: Tensor, config: MiningConfig) -> tuple[Tensor, Tensor]:
    """Loss of triplets with d_ap - d_an = gap, and its derivative."""
    if config.soft:
        return F.softplus(config.soft * gap), config.soft * torch.sigmoid(config.soft * gap)
    hinge = torch.relu(gap + config.margin)
    return hinge, (hinge > 0).to(gap.dtype)


def slope_by_squared(slope: Tensor, distances: Tensor, distance: Distance) -> Tensor:
    """dL/dS for the squared distance S, of dL/dd; 0 at d = 0, where duplicates lie and a root has no gradient."""
    if distance == "squared":
        return slope
    return torch.where(distances > 0, slope / (2 * distances), 0.0)


def _length(vectors: Tensor, distance: Distance) -> Tensor:
    """Of each row, [t]."""
    squared = vectors.square().sum(1)
    return squared if distance == "squared" else squared.sqrt_()


def global_triplet_loss(sums: TripletSum) -> Tensor:
    """This rank's share of the mean over all active triplets of all ranks, times W because DDP takes the mean.

    Zero, and still tied to the graph, where there is none: the rank must enter every collective of backward.
    """
    return sums.total / all_reduce(sums.active).clamp_min(1) * world()[1]
