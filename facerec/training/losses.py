"""The triplet loss of FaceNet (Schroff et al. 2015, equation 3), normalised over the global batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facerec.training.gather import all_reduce_sum, world
from facerec.training.mining import Triplets


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
    """Squared L2 of anchors and positives of the valid triplets, detached."""
    d_an: Tensor
    """Squared L2 of anchors and negatives of the valid triplets, detached."""


def triplet_sum(local: Tensor, everyone: Tensor, triplets: Triplets, margin: float) -> TripletSum:
    """Sum of max(0, d_ap - d_an + margin), with local [n, d] for anchors and everyone [b, d] for the others.

    Squared distances: on duplicate photographs a root has no gradient at 0, and a clamped one has gradients of 700.
    """
    with torch.autocast(local.device.type, enabled=False):
        keep = triplets.valid.nonzero()[:, 0]
        anchors = local[triplets.anchors[keep]]
        d_ap = (anchors - everyone[triplets.positives[keep]]).square().sum(1)
        d_an = (anchors - everyone[triplets.negatives[keep]]).square().sum(1)
        hinge = torch.relu(d_ap - d_an + margin)
    return TripletSum(hinge.sum(), (hinge > 0).sum(), triplets.paired.sum(), d_ap.detach(), d_an.detach())


def global_triplet_loss(sums: TripletSum) -> Tensor:
    """This rank's share of the mean over all active triplets of all ranks, times W because DDP takes the mean.

    Zero, and still tied to the graph, where there is none: the rank must enter every collective of backward.
    """
    return sums.total / all_reduce_sum(sums.active).clamp_min(1) * world()[1]
