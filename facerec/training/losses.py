"""The triplet loss of FaceNet (Schroff et al. 2015, equation 3), normalised over the global batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facerec.training.distances import Block, Distance, blocks
from facerec.training.gather import all_reduce, world
from facerec.training.mining import MiningConfig, Triplets


@dataclass(frozen=True)
class TripletSum:
    """The loss of this rank's anchors before it is normalised."""

    total: Tensor
    """Sum over active triplets, tied to the graph also where there is none."""
    active: Tensor
    """int64 scalar: triplets with a loss above 0."""
    pairs: Tensor
    """int64 scalar: anchor-positive pairs that were looked at, with a negative or without."""
    d_ap: Tensor
    """Distances of anchors and positives of the valid triplets, detached; with batch_all of all pairs."""
    d_an: Tensor
    """Distances of anchors and negatives of the valid triplets; with batch_all to each anchor's nearest negative."""


def triplet_sum(local: Tensor, everyone: Tensor, triplets: Triplets, config: MiningConfig) -> TripletSum:
    """Sum of max(0, d_ap - d_an + margin), or of the soft margin; local [n, d] for anchors, everyone [b, d] for the others."""
    with torch.autocast(local.device.type, enabled=False):
        keep = triplets.valid.nonzero()[:, 0]
        anchors = local[triplets.anchors[keep]]
        d_ap = _distance(anchors, everyone[triplets.positives[keep]], config.distance)
        d_an = _distance(anchors, everyone[triplets.negatives[keep]], config.distance)
        losses, _ = _penalty(d_ap - d_an, config)
    return TripletSum(losses.sum(), (losses > 0).sum(), triplets.paired.sum(), d_ap.detach(), d_an.detach())


def batch_all_sum(
    local: Tensor,
    everyone: Tensor,
    labels: Tensor,
    faces: Tensor,
    first: int,
    config: MiningConfig,
    block: int | None = None,
) -> TripletSum:
    """The same sum over every triplet of the anchors, n x (K - 1) x b of them, none of which is listed.

    The gradient with respect to the distances is summed up while they are looked at, in blocks of rows: O(b x block)
    memory. Arguments as of ``mining.mine``.
    """
    with torch.autocast(local.device.type, enabled=False):
        total, *numbers = _BatchAll.apply(local, everyone, labels, faces, first, config, block)
    return TripletSum(total, *numbers)


class _BatchAll(torch.autograd.Function):
    """Loss and, in the same pass, its gradient: with S the squared distances and G = dL/dS of a block of anchors A,
    dL/dA = 2 (rowsum(G) A - G E) and dL/dE = 2 (colsum(G) E - G^T A) for all embeddings E."""

    @staticmethod
    def forward(
        ctx: Any,
        local: Tensor,
        everyone: Tensor,
        labels: Tensor,
        faces: Tensor,
        first: int,
        config: MiningConfig,
        block: int | None,
    ) -> tuple[Tensor, ...]:
        total, active = local.new_zeros(()), torch.zeros((), dtype=torch.int64, device=local.device)
        to_local, to_everyone = torch.zeros_like(local), torch.zeros_like(everyone)
        d_ap, d_an = [], []
        for part in blocks(local, everyone, labels, faces, first, config.distance, block):
            losses, count, slope = _all_triplets(part, config)
            total, active = total + losses, active + count
            anchors = local[part.rows]
            to_local[part.rows] = 2 * (slope.sum(1)[:, None] * anchors - slope @ everyone)
            to_everyone += 2 * (slope.sum(0)[:, None] * everyone - slope.T @ anchors)
            nearest = part.to_negatives.min(dim=1).values
            d_ap.append(part.d_positives[part.is_positive])
            d_an.append(nearest[nearest.isfinite()])
        ctx.save_for_backward(to_local, to_everyone)
        pairs, negatives = torch.cat(d_ap), torch.cat(d_an)
        numbers = (active, torch.tensor(len(pairs), device=local.device), pairs, negatives)
        ctx.mark_non_differentiable(*numbers)
        return (total, *numbers)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        to_local, to_everyone = ctx.saved_tensors
        return grads[0] * to_local, grads[0] * to_everyone, None, None, None, None, None


def _all_triplets(part: Block, config: MiningConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Sum, count of active triplets, and the gradient with respect to the block's squared distances, [r, b]."""
    slope = torch.zeros_like(part.to_negatives)
    total, active = slope.new_zeros(()), torch.zeros((), dtype=torch.int64, device=slope.device)
    is_negative = part.to_negatives.isfinite()
    for q in range(part.positives.shape[1]):
        real = part.is_positive[:, q, None] & is_negative
        gap = torch.where(real, part.d_positives[:, q, None] - part.to_negatives, -torch.inf)
        losses, slopes = _penalty(gap, config)
        total, active = total + losses.sum(), active + (losses > 0).sum()
        slope -= _by_squared(slopes, part.to_negatives, config.distance)
        ours = _by_squared(slopes.sum(1), part.d_positives[:, q], config.distance)
        slope.scatter_add_(1, part.positives[:, q, None], ours[:, None])
    return total, active, slope


def _penalty(gap: Tensor, config: MiningConfig) -> tuple[Tensor, Tensor]:
    """Loss of triplets with d_ap - d_an = gap, and its derivative."""
    if config.soft:
        return F.softplus(config.soft * gap), config.soft * torch.sigmoid(config.soft * gap)
    hinge = torch.relu(gap + config.margin)
    return hinge, (hinge > 0).to(gap.dtype)


def _distance(left: Tensor, right: Tensor, distance: Distance) -> Tensor:
    """Distances of rows, [t]. A root has no gradient at 0, where duplicates lie, and a clamped one has 700: here it is 0."""
    squared = (left - right).square().sum(1)
    if distance == "squared":
        return squared
    root = squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()
    return torch.where(squared > 0, root, 0.0)


def _by_squared(slope: Tensor, distances: Tensor, distance: Distance) -> Tensor:
    """dL/dS for the squared distance S, of dL/dd; 0 at d = 0."""
    if distance == "squared":
        return slope
    return torch.where(distances > 0, slope / (2 * distances), 0.0)


def global_triplet_loss(sums: TripletSum) -> Tensor:
    """This rank's share of the mean over all active triplets of all ranks, times W because DDP takes the mean.

    Zero, and still tied to the graph, where there is none: the rank must enter every collective of backward.
    """
    return sums.total / all_reduce(sums.active).clamp_min(1) * world()[1]
