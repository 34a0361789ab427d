"""One training step as a function of the global batch, the same at every number of workers.

Two ways lead to the same gradient. `descend` keeps the graph of all of a rank's micro-batches: fastest. With ``cache``
it keeps that of one (gradient caching, Gao et al. 2021, https://arxiv.org/abs/2101.06983): embed without a graph, get
dL/dz from the loss of the global batch, embed each micro-batch once more with a graph and hand it its rows of dL/dz.
That is exact because a micro-batch's statistics and dropout are its own; the usual version splits what BatchNorm saw
as one batch, and is wrong by a third.

Legend: n faces of this rank, b of the global batch, m of a micro-batch, d embedding size, s image side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from facerec.models.images import normalize
from facerec.models.precision import full_or_half
from facerec.training.batchnorm import RunningStatistics, kept_statistics
from facerec.training.clock import Clock
from facerec.training.dense import dense_sum, is_dense
from facerec.training.distances import Anchors, Distance, Ints, blocks, on_device
from facerec.training.gather import gather, world
from facerec.training.losses import TripletSum, global_triplet_loss, triplet_sum
from facerec.training.metric_learning import library_loss
from facerec.training.mining import Miner, MiningConfig

Library = tuple[nn.Module, nn.Module | None]
"""A loss of pytorch-metric-learning, and a miner or none."""


class MicroBatches(nn.Module):
    """Embeds a rank's micro-batches one after another. What DDP wraps, so that one step is one forward to it."""

    def __init__(self, network: nn.Module, groups: int, precision: str = "fp32") -> None:
        """``groups`` is G, the micro-batches of the global batch; ``precision`` is fp32 or bf16 (autocast)."""
        super().__init__()
        self.network, self._groups, self._precision = network, groups, precision
        self._statistics = RunningStatistics(network)

    def forward(self, images: Tensor, seeds: Sequence[int], replay: bool = False) -> Tensor:
        """Embeddings [n, d] of images, uint8 [n, s, s, 3]; ``seeds`` has one number a micro-batch of this rank.

        Images go to the network's device a micro-batch at a time; floats are taken to be its input already.

        The seed before each forward makes dropout a function of the micro-batch and not of the rank. A ``replay``
        repeats one micro-batch, whose statistics have been counted already.
        """
        if replay:
            with kept_statistics(self.network):
                return self._embed(images, seeds[0])
        embedded = []
        with self._statistics.collected(self._groups) as collect:
            for seed, micro_batch in zip(seeds, images.chunk(len(seeds)), strict=True):
                embedded.append(self._embed(micro_batch, seed))
                collect()
        return torch.cat(embedded)

    def _embed(self, images: Tensor, seed: int) -> Tensor:
        images = images.to(next(self.network.parameters()).device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = normalize(images)
        torch.manual_seed(seed)
        with full_or_half(images.device, self._precision):
            embeddings: Tensor = self.network(images)
        return embeddings


@dataclass(frozen=True)
class Forward:
    """What a step computed; the gradient lies in the parameters."""

    loss: Tensor
    """This rank's loss, scaled for DDP's mean (see gather), detached."""
    sums: TripletSum
    anchors: Anchors
    """Detached."""


def descend(
    model: nn.Module,
    images: Tensor,
    labels: Ints,
    faces: Ints,
    *,
    seeds: Sequence[int],
    sizes: Sequence[int],
    miner: Miner,
    mining: MiningConfig,
    library: Library | None = None,
    cache: bool = False,
    clock: Clock | None = None,
) -> Forward:
    """Embed this rank's images, uint8 [n, s, s, 3], mine them against the global batch, and add the gradient of the loss.

    ``model`` is a MicroBatches or DDP around one. ``labels`` and ``faces`` are those of the global batch, [b] on the host;
    ``sizes`` are all ranks' n, in rank order; ``library`` is a loss of pytorch-metric-learning in place of the
    triplet loss; ``cache``, equal on all ranks, is gradient caching.

    On a GPU the host does not wait for the device, except within ``library``.
    """
    clock = clock or Clock()
    with clock("forward"), torch.set_grad_enabled(not cache):
        local = (_bare(model) if cache else model)(images, seeds)
    if cache:
        local.requires_grad_()
    with clock("gather"):
        everyone = gather(local, sizes)
    anchors = Anchors(local, everyone, labels, faces, first=sum(sizes[: world()[0]]))
    with clock("mine"):
        if library:
            loss, sums = _by_library(library, anchors, mining)
        else:
            sums = _in_shares(miner, anchors, mining)
            loss = global_triplet_loss(sums)
    with clock("backward"):
        loss.backward()  # type: ignore[no-untyped-call]
        if cache:
            assert local.grad is not None
            _replay(model, images, seeds, local.grad)
    return Forward(loss.detach(), sums, anchors.detached())


def _in_shares(miner: Miner, anchors: Anchors, mining: MiningConfig) -> TripletSum:
    """Each share of the people mined by itself."""
    if mining.shares == 1:
        return _triplets(miner, anchors, mining)
    share = np.unique(anchors.labels, return_inverse=True)[1] % mining.shares
    sums = [_triplets(miner, anchors.among(share == number), mining) for number in range(mining.shares)]
    return sum(sums[1:], sums[0])


def _triplets(miner: Miner, anchors: Anchors, mining: MiningConfig) -> TripletSum:
    return dense_sum(miner, anchors, mining) if is_dense(miner) else triplet_sum(miner, anchors, mining)


def _by_library(library: Library, anchors: Anchors, mining: MiningConfig) -> tuple[Tensor, TripletSum]:
    """The library's loss, and the distances of batch-hard triplets, so that telemetry tells of the same things."""
    torch.manual_seed(int(anchors.faces.sum()))  # what a miner draws must be the same on all ranks
    labels = on_device(anchors.labels, anchors.everyone.device)
    loss = library_loss(anchors.everyone, labels, *library)
    hard = _triplets("batch_hard", anchors.detached(), mining)
    one = torch.ones((), dtype=torch.int64, device=loss.device)
    return loss, TripletSum(loss.detach(), one, one, hard.d_ap, hard.d_an)


def _replay(model: nn.Module, images: Tensor, seeds: Sequence[int], gradient: Tensor) -> None:
    """Backward of each micro-batch for its rows of dL/dz [n, d]. DDP averages once, with the last one."""
    parts = zip(images.chunk(len(seeds)), gradient.chunk(len(seeds)), seeds, strict=True)
    for number, (micro_batch, rows, seed) in enumerate(parts, start=1):
        wait = number < len(seeds) and isinstance(model, nn.parallel.DistributedDataParallel)
        with model.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator]
            model(micro_batch, [seed], replay=True).backward(rows)


def _bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def nearest_negatives(anchors: Anchors, distance: Distance) -> Tensor:
    """From each anchor to the nearest other person, at most [n]."""
    nearest = torch.cat([part.to_negatives.min(dim=1).values for part in blocks(anchors, distance)])
    return nearest[nearest.isfinite()]
