"""Miners against triple loops written from DESIGN's words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import Tensor

from facerec.errors import ConfigError
from facerec.training import mining
from facerec.training.dense import dense_sum, is_dense
from facerec.training.distances import Anchors, Distance
from facerec.training.losses import TripletSum, triplet_sum
from facerec.training.mining import Miner, MiningConfig, mine

MINERS: list[Miner] = ["batch_hard", "semi_hard", "seed"]
DENSE: list[Miner] = ["batch_all", "n_pair", "multi_similarity"]
Found = set[tuple[int, int, int]]


def anchors_of(local: Tensor, everyone: Tensor, labels: Tensor, faces: Tensor, first: int = 0) -> Anchors:
    """With labels and faces as the loader gives them."""
    return Anchors(local, everyone, labels.numpy(), faces.numpy(), first)


def random_batch(seed: int, size: int = 24, people: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors [b, 5] float64, labels, and faces of which some stand twice; one person has a single face."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, people, (size,), generator=random)
    labels[3] = people
    embeddings = F.normalize(torch.randn(size, 5, generator=random, dtype=torch.float64), dim=1)
    faces = torch.arange(size) + 100
    first = int((labels == labels[0]).nonzero()[1])
    faces[first], embeddings[first] = faces[0], embeddings[0]
    return embeddings, labels, faces


def by_loops(miner: Miner, embeddings: Tensor, labels: Tensor, faces: Tensor, margin: float) -> Found:
    d = (embeddings[:, None] - embeddings).square().sum(2).tolist()
    return set(_loop(miner, d, labels.tolist(), faces.tolist(), margin))


def _loop(
    miner: Miner, d: list[list[float]], labels: list[int], faces: list[int], margin: float
) -> Iterator[tuple[int, int, int]]:
    everyone = range(len(labels))
    for a in everyone:
        positives = [p for p in everyone if labels[p] == labels[a] and faces[p] != faces[a]]
        negatives = [n for n in everyone if labels[n] != labels[a]]
        if not positives or not negatives:
            continue
        if miner != "semi_hard":
            positives = [max(positives, key=lambda p: d[a][p])]
        for p in positives:
            semi = [n for n in negatives if d[a][p] < d[a][n] < d[a][p] + margin]
            if miner == "batch_hard" or (miner == "seed" and not semi):
                semi = negatives
            if semi:
                yield a, p, min(semi, key=lambda n: d[a][n])


def mined(
    miner: Miner, batch: tuple[Tensor, Tensor, Tensor], rows: range, block: int, margin: float
) -> Found:
    embeddings, labels, faces = batch
    local = embeddings[rows.start : rows.stop]
    found = mine(miner, anchors_of(local, embeddings, labels, faces, rows.start), margin, block=block)
    columns = [found.anchors + rows.start, found.positives, found.negatives]
    return {tuple(row) for row in torch.stack(columns, 1)[found.valid].tolist()}  # type: ignore[misc]


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("margin", [0.2, 2.0])
def test_miners_find_what_triple_loops_find(miner: Miner, margin: float) -> None:
    for seed in range(5):
        batch = random_batch(seed)
        expected = by_loops(miner, *batch, margin)
        assert expected
        assert _faces(mined(miner, batch, range(24), 1024, margin), batch) == _faces(expected, batch)


def _faces(triplets: Found, batch: tuple[Tensor, Tensor, Tensor]) -> set[tuple[int, ...]]:
    """By face, because two rows of one face are equally near and either may be taken."""
    faces = batch[2].tolist()
    return {(a, faces[p], faces[n]) for a, p, n in triplets}


@pytest.mark.parametrize("miner", MINERS)
def test_blocks_and_shares_find_what_the_whole_finds(miner: Miner) -> None:
    batch = random_batch(7)
    whole = mined(miner, batch, range(24), 1024, 0.2)
    shares = [mined(miner, batch, rows, 3, 0.2) for rows in (range(10), range(10, 17), range(17, 24))]
    assert set.union(*shares) == whole


@pytest.mark.parametrize("miner", MINERS)
def test_a_batch_of_one_person_or_of_single_faces_has_no_triplet(miner: Miner) -> None:
    embeddings, _, faces = random_batch(0)
    for labels in (torch.zeros(24, dtype=torch.int64), torch.arange(24)):
        assert not mined(miner, (embeddings, labels, faces), range(24), 8, 0.2)


@pytest.mark.parametrize("distance", ["squared", "l2"])
def test_equal_embeddings_have_a_finite_gradient(distance: Distance) -> None:
    embeddings = F.normalize(torch.ones(8, 4), dim=1).requires_grad_()
    labels, faces = torch.arange(8) % 4, torch.arange(8)
    anchors = anchors_of(embeddings, embeddings, labels, faces)
    sums = triplet_sum("batch_hard", anchors, MiningConfig(margin=0.2, distance=distance))
    sums.total.backward()  # type: ignore[no-untyped-call]
    assert int(sums.active) == 8
    torch.testing.assert_close(sums.total / 8, torch.tensor(0.2))
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_mining_keeps_full_precision_under_autocast() -> None:
    embeddings, labels, faces = random_batch(1)
    anchors = anchors_of(embeddings.float(), embeddings.float(), labels, faces)
    plain = mine("semi_hard", anchors, 0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = mine("semi_hard", anchors, 0.2)
    assert torch.equal(plain.negatives, cast.negatives)
    assert torch.equal(plain.valid, cast.valid)


@pytest.mark.parametrize(
    "wrong",
    [
        {"margin": 0.0},
        {"margin": 5.0},
        {"margin": 2.5, "distance": "l2"},
        {"distance": "cosine"},
        {"soft": -1.0},
        {"strategy": "hardest"},
        {"hard_below": 2.0},
        {"strategy": "n_pair"},
        {"strategy": "multi_similarity", "distance": "l2"},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--mining"):
        MiningConfig(**wrong)


@pytest.mark.parametrize("miner", MINERS)
def test_every_anchor_positive_pair_is_counted_with_a_negative_or_without(miner: Miner) -> None:
    embeddings, labels, faces = random_batch(0)
    everyone = range(len(labels))
    pairs = [(a, p) for a in everyone for p in everyone if labels[a] == labels[p] and faces[a] != faces[p]]
    anchors = anchors_of(embeddings, embeddings, labels, faces)
    sums = triplet_sum(miner, anchors, MiningConfig(margin=0.01))
    assert int(sums.looked_at) == (len(pairs) if miner == "semi_hard" else len({a for a, _ in pairs}))
    if miner == "semi_hard":
        assert 0 < int(sums.active) < int(sums.looked_at)


LOSSES = [MiningConfig(distance=d, soft=s, margin=0.3) for d in ("squared", "l2") for s in (0.0, 5.0)]
"""Hinge and soft margin, in both distances."""


@pytest.mark.parametrize(
    ("miner", "config"),
    [
        (miner, config)
        for miner in (*MINERS, *DENSE)
        for config in LOSSES
        if (config.soft or miner != "n_pair")
        and (config.distance == "squared" or miner != "multi_similarity")
    ],
    ids=lambda value: f"{value.distance}-{value.soft}" if isinstance(value, MiningConfig) else value,
)
def test_loss_and_gradient_are_those_of_triple_loops(miner: Miner, config: MiningConfig) -> None:
    """By shares and blocks. With the dense ones two faces of one person are equal: at 0 there is no gradient, and no NaN."""
    plain, labels, faces = random_batch(3)
    if miner in DENSE:  # the others would have to choose between equals
        one, other = (labels == labels[1]).nonzero()[:2, 0].tolist()
        plain[other] = plain[one]
        assert faces[one] != faces[other]
    plain.requires_grad_()
    expected = _plain_losses(miner, plain, labels, faces, config)
    torch.stack(expected).sum().backward()  # type: ignore[no-untyped-call]

    embeddings = plain.detach().clone().requires_grad_()
    parts = [_summed(miner, embeddings, labels, faces, rows, config) for rows in (range(10), range(10, 24))]
    torch.stack([part.total for part in parts]).sum().backward()  # type: ignore[no-untyped-call]
    assert sum(int(part.active) for part in parts) == sum(float(loss.detach()) > 0 for loss in expected)
    assert plain.grad is not None
    assert embeddings.grad is not None
    torch.testing.assert_close(sum(part.total for part in parts), torch.stack(expected).sum())
    torch.testing.assert_close(embeddings.grad, plain.grad, rtol=0, atol=1e-9)


def _summed(
    miner: Miner, embeddings: Tensor, labels: Tensor, faces: Tensor, rows: range, config: MiningConfig
) -> TripletSum:
    anchors = anchors_of(embeddings[rows.start : rows.stop], embeddings, labels, faces, rows.start)
    if is_dense(miner):
        return dense_sum(miner, anchors, config, block=4)
    return triplet_sum(miner, anchors, config, block=4)


def _plain_losses(
    miner: Miner, embeddings: Tensor, labels: Tensor, faces: Tensor, config: MiningConfig
) -> list[Tensor]:
    def distance(i: int, j: int) -> Tensor:
        return _plain_distance(embeddings[i], embeddings[j], config.distance)

    if miner == "multi_similarity":
        return multi_similarity_losses(embeddings, labels.tolist(), faces.tolist())
    everyone = range(len(labels))
    d = [[float(distance(i, j).detach()) for j in everyone] for i in everyone]
    triplets = list(
        every_triplet(labels.tolist(), faces.tolist())
        if miner in DENSE
        else _loop(miner, d, labels.tolist(), faces.tolist(), config.margin)
    )
    gaps = [distance(a, p) - distance(a, n) for a, p, n in triplets]
    if miner == "n_pair":
        return n_pair_losses(triplets, gaps, config.soft)
    if config.soft:
        return [torch.log1p(torch.exp(config.soft * gap)) for gap in gaps]
    return [(gap + config.margin).clamp_min(0) for gap in gaps]


def n_pair_losses(triplets: list[tuple[int, int, int]], gaps: list[Tensor], soft: float) -> list[Tensor]:
    """One an anchor-positive pair, from the gaps of all its triplets."""
    pairs: dict[tuple[int, int], list[Tensor]] = {}
    for (a, p, _), gap in zip(triplets, gaps, strict=True):
        pairs.setdefault((a, p), []).append(torch.exp(soft * gap))
    return [torch.log1p(torch.stack(terms).sum()) for terms in pairs.values()]


def multi_similarity_losses(embeddings: Tensor, labels: list[int], faces: list[int]) -> list[Tensor]:
    """One an anchor that has a positive and a negative: Wang et al. 2019, term by term."""
    cosines = 1 - (embeddings[:, None] - embeddings).square().sum(2) / 2
    everyone = range(len(labels))
    losses = []
    for a in everyone:
        positives = [cosines[a, j] for j in everyone if labels[j] == labels[a] and faces[j] != faces[a]]
        negatives = [cosines[a, j] for j in everyone if labels[j] != labels[a]]
        if positives and negatives:
            nearest, farthest = max(negatives), min(positives)
            pull = [torch.exp(2 * (0.5 - s)) for s in positives if s - 0.1 < nearest]
            push = [torch.exp(50 * (s - 0.5)) for s in negatives if s + 0.1 > farthest]
            one = cosines.new_ones(())
            losses.append(torch.log(sum(pull, one)) / 2 + torch.log(sum(push, one)) / 50)
    return losses


def test_multi_similarity_is_the_library_s() -> None:
    """Without a face that stands in the batch twice, of which the library knows nothing; it normalises by itself."""
    plain, labels, _ = random_batch(5)
    faces = torch.arange(len(labels))
    plain.requires_grad_()
    expected = MultiSimilarityLoss()(plain, labels, MultiSimilarityMiner()(plain, labels)) * len(labels)
    expected.backward()
    embeddings = plain.detach().clone().requires_grad_()
    unit = F.normalize(embeddings, dim=1)
    sums = dense_sum("multi_similarity", anchors_of(unit, unit, labels, faces), MiningConfig(), block=7)
    sums.total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(sums.total, expected)
    assert int(sums.looked_at) == sum(int((labels == label).sum()) > 1 for label in labels)
    assert plain.grad is not None
    torch.testing.assert_close(embeddings.grad, plain.grad, rtol=0, atol=1e-9)


def test_each_dense_loss_looks_at_its_own_unit() -> None:
    """Triplets, pairs, anchors: what the active fraction is a fraction of."""
    batch, everyone = random_batch(4), range(24)
    triplets = list(every_triplet(batch[1].tolist(), batch[2].tolist()))
    counts = {
        "batch_all": len(triplets),
        "n_pair": len({(a, p) for a, p, _ in triplets}),
        "multi_similarity": len({a for a, _, _ in triplets}),
    }
    for miner in DENSE:
        assert int(_summed(miner, *batch, everyone, MiningConfig(soft=5.0)).looked_at) == counts[miner]


def every_triplet(labels: list[int], faces: list[int]) -> Iterator[tuple[int, int, int]]:
    everyone = range(len(labels))
    for a in everyone:
        for p in everyone:
            if labels[p] == labels[a] and faces[p] != faces[a]:
                yield from ((a, p, n) for n in everyone if labels[n] != labels[a])


def _plain_distance(left: Tensor, right: Tensor, distance: Distance) -> Tensor:
    squared = (left - right).square().sum()
    return squared if distance == "squared" or not float(squared.detach()) else squared.sqrt()


@pytest.mark.parametrize("margin", [0.01, 0.2, 2.0])
@pytest.mark.parametrize("block", [7, 1024])
def test_sorting_finds_the_semi_hard_that_searching_finds(
    margin: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, labels, faces = random_batch(2, size=200, people=5)
    batch = embeddings.float(), labels, faces
    found = []
    for sort_above in (1000, 0):
        monkeypatch.setitem(mining.SORT_ABOVE, "cpu", sort_above)
        found.append(mined("semi_hard", batch, range(200), block, margin))
    assert found[0]
    assert found[1] == found[0]


@pytest.mark.parametrize("miner", [*MINERS, *DENSE])
def test_a_rank_without_rows_of_a_share_has_no_triplets_and_stays_in_the_graph(miner: Miner) -> None:
    everyone, labels, faces = random_batch(0)
    everyone.requires_grad_()
    sums = _summed(miner, everyone, labels, faces, range(0), MiningConfig(soft=5.0))
    assert (float(sums.total.detach()), int(sums.active), int(sums.looked_at)) == (0.0, 0, 0)
    sums.total.backward()  # type: ignore[no-untyped-call]
    assert everyone.grad is not None
    assert not everyone.grad.any()
