"""The claim that carries the design: loss and gradient at any world size are those of one process on the whole batch.

The oracle is plain: one forward a micro-batch, all distances, loops over triplets, one mean. It shares no line with
the code under test but the miners' words.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerec.models.embedder import Embedder
from facerec.training.gather import world
from facerec.training.metric_learning import LibraryLoss
from facerec.training.mining import Miner, MiningConfig
from facerec.training.step import MicroBatches, descend
from tests.support.ddp import run_ddp
from tests.training.test_mining import (
    DENSE,
    MINERS,
    by_loops,
    every_triplet,
    multi_similarity_losses,
    n_pair_losses,
)

MICRO, PEOPLE, MARGIN = 6, 6, 0.3
LIBRARY = LibraryLoss(loss="MultiSimilarityLoss")
SOFT = 3.0
"""With n_pair, which has no hinge."""
CASES = [
    (groups, miner, norm, alone)
    for groups in (6, 7)
    for miner in (*MINERS, *DENSE)
    for norm in (False, True)
    for alone in (False, True)
]
"""(micro-batches, miner, with BatchNorm, with active triplets in the first micro-batch alone)."""


def small_network(norm: bool) -> nn.Module:
    torch.manual_seed(5)
    middle: nn.Module = nn.BatchNorm2d(4) if norm else nn.Identity()
    head: nn.Module = nn.BatchNorm1d(8) if norm else nn.Identity()
    layers = [nn.Conv2d(3, 4, 3), middle, nn.Tanh(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 8), head]
    return nn.Sequential(*layers, _Normalise()).double()


class _Normalise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


def batch_of(groups: int, alone: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and faces; a face stands twice. ``alone``: only two people of the first micro-batch pair up."""
    torch.manual_seed(6)
    images = torch.randn(groups * MICRO, 3, 6, 6, dtype=torch.float64)
    labels = torch.arange(groups * MICRO) % PEOPLE
    faces = torch.arange(groups * MICRO)
    if alone:
        labels = torch.arange(groups * MICRO) + 10
        labels[:4] = torch.tensor([0, 0, 1, 1])
    else:
        faces[PEOPLE] = faces[0]
    return images, labels, faces


def our_step(
    groups: int,
    miner: Miner,
    norm: bool,
    alone: bool,
    cache: bool,
    library: LibraryLoss | None = None,
    shares: int = 1,
    shared: int = 1,
    backend: str | None = None,
) -> dict[str, Any]:
    """One step by the code under test, on this rank: loss summed over ranks / W, gradient after DDP, statistics."""
    rank, workers = world()
    each, more = divmod(groups, workers)
    counts = [each + (r < more) for r in range(workers)]
    ours = range(sum(counts[:rank]), sum(counts[: rank + 1]))
    images, labels, faces = batch_of(groups, alone)
    network = small_network(norm)
    model: nn.Module = MicroBatches(network, groups, shared=shared, backend=backend)
    if workers > 1:
        model = nn.parallel.DistributedDataParallel(
            model, forward_sync_buffers=False, find_unused_parameters=True
        )
    result = descend(
        model,
        images[ours.start * MICRO : ours.stop * MICRO],
        labels.numpy(),
        faces.numpy(),
        seeds=[900 + group for group in ours],
        sizes=[count * MICRO for count in counts],
        miner=miner,
        mining=MiningConfig(margin=MARGIN, soft=SOFT if miner == "n_pair" else 0.0, shares=shares),
        library=library.build() if library else None,
        cache=cache,
    )
    return {
        "loss": float(result.loss) / workers,
        "active": int(result.sums.active),
        "gradient": torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]),
        "buffers": {name: buffer.clone() for name, buffer in network.named_buffers()},
    }


def our_steps() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each case with the graph kept, and with gradient caching."""
    return [(our_step(*case, cache=False), our_step(*case, cache=True)) for case in CASES]


def plain_step(
    groups: int, miner: Miner, norm: bool, alone: bool, shares: int = 1
) -> tuple[float, Tensor, dict[str, Tensor]]:
    """The oracle: (loss, gradient, running statistics). Each share of the people is mined as if it were all."""
    images, labels, faces = batch_of(groups, alone)
    network = small_network(norm)
    running = _plain_statistics(network, images)
    embedded = []
    for group, micro_batch in enumerate(images.split(MICRO)):
        torch.manual_seed(900 + group)
        embedded.append(network(micro_batch))
    z = torch.cat(embedded)
    triplets: list[tuple[int, int, int]] = []
    by_anchor: list[Tensor] = []
    for share in range(shares):
        rows = [row for row, label in enumerate(labels.tolist()) if label % shares == share]
        batch = z.detach()[rows], labels[rows], faces[rows]
        listed = every_triplet(batch[1].tolist(), batch[2].tolist())
        found = listed if miner in DENSE else by_loops(miner, *batch, MARGIN)
        triplets += [(rows[a], rows[p], rows[n]) for a, p, n in found]
        by_anchor += multi_similarity_losses(z[rows], batch[1].tolist(), batch[2].tolist())
    gaps = [(z[a] - z[p]).square().sum() - (z[a] - z[n]).square().sum() for a, p, n in triplets]
    losses = [gap + MARGIN for gap in gaps]
    if miner == "n_pair":
        losses = n_pair_losses(triplets, gaps, SOFT)
    if miner == "multi_similarity":
        losses = by_anchor
    active = [loss for loss in losses if loss > 0]
    mean = torch.stack(active).mean()
    mean.backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return float(mean.detach()), gradient, running


def _plain_statistics(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Fresh running statistics (0 and 1) after one step of 0.1 to the mean over micro-batches of theirs."""
    seen: list[dict[str, Tensor]] = []
    for group, micro_batch in enumerate(images.split(MICRO)):
        alone = deepcopy(network)
        for layer in alone.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.momentum = 1.0
        torch.manual_seed(900 + group)
        alone(micro_batch)
        seen.append({name: buffer for name, buffer in alone.named_buffers() if "running" in name})
    means = {name: torch.stack([statistics[name] for statistics in seen]).mean(0) for name in seen[0]}
    return {name: 0.1 * mean + (0.9 if name.endswith("var") else 0.0) for name, mean in means.items()}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_loss_gradient_and_statistics_are_those_of_one_process(world_size: int) -> None:
    ranks = run_ddp(world_size, our_steps)
    for number, case in enumerate(CASES):
        loss, gradient, running = plain_step(*case)
        assert gradient.norm() > 1e-3
        for cache in (False, True):
            steps = [steps[number][cache] for steps in ranks]
            assert abs(sum(step["loss"] for step in steps) - loss) < 1e-9, case
            for step in steps:
                torch.testing.assert_close(step["gradient"], gradient, rtol=0, atol=1e-9)
                for name, expected in running.items():
                    torch.testing.assert_close(step["buffers"][name], expected, rtol=0, atol=1e-9)
            if case[-1]:
                assert all(step["active"] == 0 for step in steps[1:]), "only the first rank has triplets"
        for kept, cached in (steps[number] for steps in ranks):
            torch.testing.assert_close(cached["gradient"], kept["gradient"], rtol=0, atol=1e-10)
            assert cached["buffers"].keys() == kept["buffers"].keys()
            assert all(
                torch.equal(cached["buffers"][name], kept["buffers"][name]) for name in kept["buffers"]
            )


SHARES = 3


def shared_steps() -> list[dict[str, Any]]:
    return [our_step(6, miner, True, False, cache=False, shares=SHARES) for miner in (*MINERS, *DENSE)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_shares_are_mined_apart_whatever_rank_their_people_are_on(world_size: int) -> None:
    ranks = run_ddp(world_size, shared_steps)
    for number, miner in enumerate((*MINERS, *DENSE)):
        loss, gradient, _ = plain_step(6, miner, True, False, SHARES)
        assert loss != plain_step(6, miner, True, False)[0]
        assert abs(sum(steps[number]["loss"] for steps in ranks) - loss) < 1e-9
        for steps in ranks:
            torch.testing.assert_close(steps[number]["gradient"], gradient, rtol=0, atol=1e-9)


def test_one_process_without_a_group_runs_the_same_lines() -> None:
    for case in CASES:
        loss, gradient, _ = plain_step(*case)
        for cache in (False, True):
            step = our_step(*case, cache=cache)
            assert abs(step["loss"] - loss) < 1e-9
            torch.testing.assert_close(step["gradient"], gradient, rtol=0, atol=1e-9)


def test_gradient_caching_holds_the_graph_of_one_micro_batch_at_a_time() -> None:
    """Bytes that autograd keeps for backward, at their most, do not grow with the batch."""
    kept = {(groups, cache): _most_bytes_kept(groups, cache) for groups in (6, 24) for cache in (False, True)}
    assert kept[24, False] > 3 * kept[6, False]
    assert kept[24, True] < 1.2 * kept[6, True]


def _most_bytes_kept(groups: int, cache: bool) -> int:
    held, most = 0, 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal held, most
            self.tensor, self.bytes = (
                tensor,
                tensor.nbytes if tensor.ndim > 2 else 0,
            )  # a network's, not the loss's
            held += self.bytes
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda kept: kept.tensor):
        our_step(groups, "batch_hard", norm=True, alone=False, cache=cache)
    return most


def test_a_step_without_any_triplet_has_a_zero_gradient_and_not_none() -> None:
    images, _, faces = batch_of(6, alone=False)
    for cache in (False, True):
        network = small_network(norm=True)
        result = descend(
            MicroBatches(network, 6),
            images,
            np.arange(len(images)),
            faces.numpy(),
            seeds=range(6),
            sizes=[len(images)],
            miner="batch_hard",
            mining=MiningConfig(margin=MARGIN),
            cache=cache,
        )
        assert float(result.loss) == 0
        assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


def library_steps() -> list[dict[str, Any]]:
    return [our_step(6, "semi_hard", True, False, cache, LIBRARY) for cache in (False, True)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_a_loss_of_the_metric_learning_library_is_that_of_one_process(world_size: int) -> None:
    images, labels, _ = batch_of(6, alone=False)
    network, embedded = small_network(norm=True), []
    for group, micro_batch in enumerate(images.split(MICRO)):
        torch.manual_seed(900 + group)
        embedded.append(network(micro_batch))
    loss = LIBRARY.build()[0](torch.cat(embedded), labels)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    for steps in run_ddp(world_size, library_steps):
        for step in steps:  # each rank has the whole loss
            assert abs(step["loss"] * world_size - float(loss.detach())) < 1e-9
            torch.testing.assert_close(step["gradient"], gradient, rtol=0, atol=1e-9)


def library_draws() -> float:
    torch.manual_seed(world()[0])  # as ranks are left by dropout of their own micro-batches
    library = LibraryLoss(loss="TripletMarginLoss", miner="DistanceWeightedMiner")
    return float(our_step(6, "semi_hard", True, False, False, library)["loss"]) * world()[1]


def test_what_a_miner_of_the_library_draws_is_the_same_on_all_ranks() -> None:
    (alone,) = run_ddp(1, library_draws)
    assert run_ddp(2, library_draws) == pytest.approx([alone, alone], abs=1e-9)


def test_in_bf16_gradient_caching_gives_the_gradient_of_the_kept_graph_and_embeddings_stay_fp32() -> None:
    images, labels, faces = batch_of(6, alone=False)
    gradients = []
    for cache in (False, True):
        layers = list(small_network(norm=True).float().children())[:-1]
        network = Embedder(nn.Sequential(*layers))
        result = descend(
            MicroBatches(network, 6, "bf16"),
            images.float(),
            labels.numpy(),
            faces.numpy(),
            seeds=range(6),
            sizes=[len(images)],
            miner="batch_hard",
            mining=MiningConfig(margin=MARGIN),
            cache=cache,
        )
        assert result.loss.dtype == torch.float32
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert float(F.cosine_similarity(gradients[0], gradients[1], dim=0)) > 0.9999
