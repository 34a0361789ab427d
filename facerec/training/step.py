"""One training step as a function of the global batch, the same at every number of workers.

Legend: n faces of this rank, b of the global batch, m of a micro-batch, d embedding size, s image side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from facerec.training.batchnorm import global_statistics
from facerec.training.gather import gather, world
from facerec.training.losses import TripletSum, global_triplet_loss, triplet_sum
from facerec.training.mining import Miner, Triplets, mine


class MicroBatches(nn.Module):
    """Embeds a rank's micro-batches one after another. What DDP wraps, so that one step is one forward to it."""

    def __init__(self, network: nn.Module, groups: int) -> None:
        """``groups`` is G, the micro-batches of the global batch."""
        super().__init__()
        self.network, self._groups = network, groups

    def forward(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Embeddings [n, d] of images [n, 3, s, s]; ``seeds`` has one number a micro-batch of this rank.

        The seed before each forward makes dropout a function of the micro-batch and not of the rank.
        """
        embedded = []
        with global_statistics(self.network, self._groups) as collect:
            for seed, micro_batch in zip(seeds, images.chunk(len(seeds)), strict=True):
                torch.manual_seed(seed)
                embedded.append(self.network(micro_batch))
                collect()
        return torch.cat(embedded)


@dataclass(frozen=True)
class Forward:
    """What a step computed, before backward."""

    loss: Tensor
    """This rank's loss, scaled for DDP's mean (see gather)."""
    sums: TripletSum
    everyone: Tensor
    """Embeddings of the global batch, [b, d], detached."""


def forward(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    faces: Tensor,
    *,
    seeds: Sequence[int],
    sizes: Sequence[int],
    miner: Miner,
    margin: float,
) -> Forward:
    """Embed this rank's images [n, 3, s, s], mine them against the global batch, and give the loss.

    ``labels`` and ``faces`` are those of the global batch, int64 [b]; ``sizes`` are all ranks' n, in rank order.
    """
    rank, _ = world()
    local = model(images, seeds)
    everyone = gather(local, sizes)
    triplets = mine(miner, local, everyone, labels, faces, sum(sizes[:rank]), margin)
    sums = triplet_sum(local, everyone, triplets, margin)
    return Forward(global_triplet_loss(sums), sums, everyone.detach())


def nearest_negatives(everyone: Tensor, labels: Tensor, faces: Tensor, margin: float) -> Tensor:
    """Squared L2 from each embedding of the global batch to the nearest other person, [b]."""
    triplets: Triplets = mine("batch_hard", everyone, everyone, labels, faces, 0, margin)
    return (everyone - everyone[triplets.negatives]).square().sum(1)[triplets.valid]
