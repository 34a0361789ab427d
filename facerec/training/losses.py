"""The triplet loss of FaceNet (Schroff et al. 2015, equation 3), normalised over the global batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from facerec.training.distances import Anchors, Distance
from facerec.training.gather import all_reduce, world
from facerec.training.mining import MiningConfig, Triplets


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
    """Distances of anchors and positives of the valid triplets, detached; with those of dense of all pairs."""
    d_an: Tensor
    """Distances of anchors and negatives of the valid triplets; with those of dense to each anchor's nearest negative."""

    def __add__(self, other: TripletSum) -> TripletSum:
        """The sum over both's triplets."""
        return TripletSum(
            self.total + other.total,
            self.active + other.active,
            self.looked_at + other.looked_at,
            torch.cat([self.d_ap, other.d_ap]),
            torch.cat([self.d_an, other.d_an]),
        )


def triplet_sum(anchors: Anchors, triplets: Triplets, config: MiningConfig) -> TripletSum:
    """Sum of max(0, d_ap - d_an + margin), or of the soft margin, over triplets of these anchors."""
    with torch.autocast(anchors.local.device.type, enabled=False):
        keep, everyone = triplets.valid.nonzero()[:, 0], anchors.everyone
        vectors = anchors.local[triplets.anchors[keep]]
        d_ap = _distance(vectors, everyone[triplets.positives[keep]], config.distance)
        d_an = _distance(vectors, everyone[triplets.negatives[keep]], config.distance)
        losses, _ = penalty(d_ap - d_an, config)
    return TripletSum(losses.sum(), (losses > 0).sum(), triplets.paired.sum(), d_ap.detach(), d_an.detach())


def penalty(gap: Tensor, config: MiningConfig) -> tuple[Tensor, Tensor]:
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


def global_triplet_loss(sums: TripletSum) -> Tensor:
    """This rank's share of the mean over all active triplets of all ranks, times W because DDP takes the mean.

    Zero, and still tied to the graph, where there is none: the rank must enter every collective of backward.
    """
    return sums.total / all_reduce(sums.active).clamp_min(1) * world()[1]
