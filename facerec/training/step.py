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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from facerec.models.device import on_device
from facerec.models.precision import full_or_half
from facerec.training.batchnorm import RunningStatistics, kept_statistics
from facerec.training.clock import Clock
from facerec.training.dense import dense_sum, is_dense
from facerec.training.distances import Anchors, Distance, Ints, blocks
from facerec.training.gather import gather, world
from facerec.training.launches import SharedForward, as_input, even
from facerec.training.losses import TripletSum, global_triplet_loss, triplet_sum
from facerec.training.metric_learning import library_loss
from facerec.training.mining import Miner, MiningConfig

Library = tuple[nn.Module, nn.Module | None]
"""A loss of pytorch-metric-learning, and a miner or none."""


class MicroBatches(nn.Module):
    """Embeds a rank's micro-batches. What DDP wraps, so that one step is one forward to it."""

    def __init__(
        self,
        network: nn.Module,
        groups: int,
        precision: str = "fp32",
        *,
        shared: int = 1,
        backend: str | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        """``groups`` is G, the micro-batches of the global batch; ``precision`` is fp32 or bf16 (autocast).

        ``shared`` micro-batches at most are embedded in one forward (see launches), which ``backend`` compiles. With
        ``cuda_graphs`` gradients are allocated here, and the caller keeps them (``zero_grad(set_to_none=False)``).
        """
        super().__init__()
        if cuda_graphs:
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)
        self.network, self._groups, self._precision, self._shared = network, groups, precision, shared
        self._statistics = RunningStatistics(network)
        self._shared_forward = (
            SharedForward(network, precision, backend, cuda_graphs) if backend or shared > 1 else None
        )

    def forward(self, images: Tensor, seeds: Sequence[int], replay: bool = False) -> Tensor:
        """Embeddings [n, d] of images, uint8 [n, s, s, 3]; ``seeds`` has one number a micro-batch of this rank.

        Images go to the network's device as they are embedded; floats are taken to be its input already.

        The seed of each micro-batch makes dropout a function of the micro-batch and not of the rank. A ``replay``
        repeats micro-batches whose statistics have been counted already.
        """
        with contextlib.ExitStack() as stack:
            if replay:
                stack.enter_context(kept_statistics(self.network))
            else:
                collect = stack.enter_context(self._statistics.collected(self._groups))
            # Without a graph, weights are cast once. With one, the gradients of the casts would add up in bf16.
            if not torch.is_grad_enabled():
                stack.enter_context(full_or_half(self._device(), self._precision))
            embedded: list[Tensor] = []
            for part, part_seeds in self.forwards(images, seeds):
                alone = replay or not embedded or not torch.is_grad_enabled()
                vectors, statistics = self._embed(part, part_seeds, alone)
                embedded.append(vectors)
                if not replay:
                    collect(statistics, len(part_seeds))
            return torch.cat(embedded)

    def forwards(self, rows: Tensor, seeds: Sequence[int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """The rows of this rank's micro-batches, [n, ...], and their seeds, as they are embedded together."""
        m, at = len(rows) // len(seeds), 0
        for count in even(len(seeds), self._shared):
            yield rows[at * m : (at + count) * m], seeds[at : at + count]
            at += count

    def _embed(self, images: Tensor, seeds: Sequence[int], alone: bool) -> tuple[Tensor, Tensor | None]:
        """Embeddings, and the statistics that :class:`SharedForward` gives."""
        images = images.to(self._device(), non_blocking=True)
        if self._shared_forward:
            return self._shared_forward(images, seeds, alone)
        torch.manual_seed(seeds[0])
        with full_or_half(images.device, self._precision):
            embeddings: Tensor = self.network(as_input(images))
        return embeddings, None

    def _device(self) -> torch.device:
        return next(self.network.parameters()).device


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
    """Backward of each forward for its rows of dL/dz [n, d]. DDP averages once, with the last one."""
    forwards = _bare(model).forwards
    parts = list(zip(forwards(images, seeds), forwards(gradient, seeds), strict=True))
    for number, ((part, part_seeds), (rows, _)) in enumerate(parts, start=1):
        wait = number < len(parts) and isinstance(model, nn.parallel.DistributedDataParallel)
        with model.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator]
            model(part, part_seeds, replay=True).backward(rows)


def _bare(model: nn.Module) -> MicroBatches:
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    assert isinstance(bare, MicroBatches)
    return bare


def nearest_negatives(anchors: Anchors, distance: Distance) -> Tensor:
    """From each anchor to the nearest other person, at most [n]."""
    nearest = torch.cat([part.to_negatives.min(dim=1).values for part in blocks(anchors, distance)])
    return nearest[nearest.isfinite()]
