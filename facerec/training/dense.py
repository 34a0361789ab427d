"""Losses over all of an anchor's negatives, none of which is listed.

batch_all is the sum over every triplet there is, n x (K - 1) x b of them (Hermans et al. 2017). n_pair takes each
anchor-positive pair against all negatives at once, as the multi-class N-pair loss does (Sohn 2016):

    log(1 + sum over n of exp(soft * (d_ap - d_an)))

which is the soft margin of batch_hard with a smooth maximum over the negatives in place of the nearest one, so that each
pair teaches about the whole global batch. With squared distances of unit vectors it is InfoNCE at the temperature
1 / (2 soft). Neither has a margin's end with ``soft``: all triplets and pairs stay active.

multi_similarity weighs an anchor's positives and negatives apart, each by how it lies beside the others (Wang et al.
2019, equations 11, 12 and 15), with s the cosine, 1 - d / 2 of squared distances d:

    log(1 + sum over p of exp(alpha * (base - s_ap))) / alpha + log(1 + sum over n of exp(beta * (s_an - base))) / beta

over positives less than epsilon nearer than the nearest negative, and negatives less than epsilon farther than the
farthest positive. What is in order already is left alone, so people are not drawn into points.

Legend as in distances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeGuard, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from facerec.training.distances import Anchors, Block
from facerec.training.losses import Gradient, Numbers, TripletSum, penalty, slope_by_squared, sum_blocks
from facerec.training.mining import ALPHA, BASE, BETA, EPSILON, Miner, MiningConfig

Dense = Literal["batch_all", "n_pair", "multi_similarity"]


def is_dense(miner: Miner) -> TypeGuard[Dense]:
    """Whether it lists no triplets, so that its loss is found here."""
    return miner in get_args(Dense)


def dense_sum(miner: Dense, anchors: Anchors, config: MiningConfig, block: int | None = None) -> TripletSum:
    """The anchors' loss before it is normalised."""

    def loss(part: Block, gradient: Gradient) -> Numbers:
        total, active, looked_at, slope = LOSSES[miner](part, config)
        gradient.add_slope(part.rows, slope)
        nearest = part.to_negatives.min(dim=1).values
        d_ap = torch.where(part.is_positive, part.d_positives, torch.nan).flatten()
        return total, active, looked_at, d_ap, torch.where(nearest.isfinite(), nearest, torch.nan)

    return sum_blocks(anchors, config.distance, block, loss)


Sums = tuple[Tensor, Tensor, Tensor, Tensor]
"""Loss of a block, how much of it is active, of how much that was looked at, and dL/dS [r, b] of squared distances S."""


def _every_triplet(part: Block, config: MiningConfig) -> Sums:
    """Of all triplets."""
    slope = torch.zeros_like(part.to_negatives)
    total, active = slope.new_zeros(()), torch.zeros((), dtype=torch.int64, device=slope.device)
    is_negative = part.to_negatives.isfinite()
    for q in range(part.positives.shape[1]):
        real = part.is_positive[:, q, None] & is_negative
        gap = torch.where(real, part.d_positives[:, q, None] - part.to_negatives, -torch.inf)
        losses, slopes = penalty(gap, config)
        total, active = total + losses.sum(), active + (losses > 0).sum()
        slope -= slope_by_squared(slopes, part.to_negatives, config.distance)
        ours = slope_by_squared(slopes.sum(1), part.d_positives[:, q], config.distance)
        slope.scatter_add_(1, part.positives[:, q, None], ours[:, None])
    return total, active, (part.is_positive.sum(1) * is_negative.sum(1)).sum(), slope


def _every_pair(part: Block, config: MiningConfig) -> Sums:
    """Of each anchor-positive pair against all negatives; those of an anchor share one sum of exponentials."""
    towards = -config.soft * part.to_negatives  # -inf at the anchor's own identity
    negatives = towards.logsumexp(dim=1, keepdim=True)
    real = part.is_positive & negatives.isfinite()
    gap = torch.where(real, config.soft * part.d_positives + negatives, -torch.inf)
    slopes = config.soft * torch.sigmoid(gap)
    shares = torch.where(negatives.isfinite(), (towards - negatives).exp(), 0.0)
    slope = -slope_by_squared(slopes.sum(1, keepdim=True) * shares, part.to_negatives, config.distance)
    slope.scatter_add_(1, part.positives, slope_by_squared(slopes, part.d_positives, config.distance))
    return F.softplus(gap).sum(), real.sum(), part.is_positive.sum(), slope


def _every_anchor(part: Block, _config: MiningConfig) -> Sums:
    """Of each anchor's positives and negatives, each side by itself."""
    to_positives, to_negatives = 1 - part.d_positives / 2, 1 - part.to_negatives / 2
    farthest = torch.where(part.is_positive, to_positives, torch.inf).min(dim=1, keepdim=True).values
    nearest = to_negatives.max(dim=1, keepdim=True).values
    pulled = part.is_positive & (to_positives - EPSILON < nearest)
    pull = torch.where(pulled, ALPHA * (BASE - to_positives), -torch.inf)
    push = torch.where(to_negatives + EPSILON > farthest, BETA * (to_negatives - BASE), -torch.inf)
    pulls, pushes = (F.softplus(side.logsumexp(dim=1, keepdim=True)) for side in (pull, push))
    slope = -(push - pushes).exp() / 2
    slope.scatter_add_(1, part.positives, (pull - pulls).exp() / 2)
    losses = pulls / ALPHA + pushes / BETA
    return losses.sum(), (losses > 0).sum(), (farthest.isfinite() & nearest.isfinite()).sum(), slope


LOSSES: dict[Dense, Callable[[Block, MiningConfig], Sums]] = {
    "batch_all": _every_triplet,
    "n_pair": _every_pair,
    "multi_similarity": _every_anchor,
}
