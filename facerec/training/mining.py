"""Which triplets are trained on: exact mining of local anchors against the global batch.

Pure functions of tensors. A rank mines its own n rows against all b, in blocks of rows, so memory is O(b x block) and
the work a rank b^2 / W. Legend: n rows of this rank, b global batch, r rows of a block, q positives a row, d
embedding size. Distances are squared L2: on unit vectors in [0, 4].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from facerec.errors import ConfigError

Miner = Literal["batch_hard", "semi_hard", "seed", "batch_all"]
STRATEGIES = ("batch_hard", "semi_hard", "seed", "batch_all", "curriculum")
Strategy = Literal["batch_hard", "semi_hard", "seed", "batch_all", "curriculum"]
Distance = Literal["squared", "l2"]

BLOCK_DISTANCES = 2**24
"""Distances looked at together, 64 MB in fp32: all rows of a batch of 4,096, and 256 rows of one of 65,536."""


SORT_ABOVE = 8
"""Faces an identity above which semi-hard sorts a row once: a sort costs as much as a search for eight."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """Which triplets, and how far apart the loss wants people."""

    strategy: Strategy = "semi_hard"
    """semi_hard never collapsed; batch_hard is stronger late; curriculum is the first, then the second; seed mixes;
    batch_all takes every triplet there is."""
    margin: float = 0.2
    """How much farther than the positive the negative must be, in ``distance``."""
    distance: Distance = "squared"
    """squared L2 (FaceNet's; 0 to 4 on unit vectors), or plain l2 (0 to 2)."""
    soft: float = 0.0
    """Above 0: softplus(soft * (d_ap - d_an)) in place of the hinge (Hermans et al. 2017), so nothing is ever done."""
    hard_after: float = 0.5
    """With curriculum: the fraction of all steps after which it turns to batch_hard."""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ConfigError(
                f"strategy is {self.strategy!r}; choose one of {', '.join(STRATEGIES)} (--mining.strategy)"
            )
        if self.distance not in ("squared", "l2"):
            raise ConfigError(f"distance is {self.distance!r}; choose squared or l2 (--mining.distance)")
        most = 4 if self.distance == "squared" else 2
        if not 0 < self.margin <= most:
            raise ConfigError(
                f"margin is {self.margin}; {self.distance} distances lie in 0 to {most}, choose above 0 (--mining.margin)"
            )
        if self.soft < 0:
            raise ConfigError(f"soft is {self.soft}; choose 0 for the hinge, or above (--mining.soft)")
        if not 0 <= self.hard_after <= 1:
            raise ConfigError(f"hard_after is {self.hard_after}; choose from 0 to 1 (--mining.hard_after)")

    @property
    def loss_at_collapse(self) -> float:
        """The loss where all distances are equal."""
        return math.log(2) if self.soft else self.margin

    def miner(self, step: int, steps: int) -> Miner:
        """The miner of a step, counted from 0, of a run of ``steps``."""
        if self.strategy != "curriculum":
            return self.strategy
        return "semi_hard" if step < self.hard_after * steps else "batch_hard"


@dataclass(frozen=True)
class Triplets:
    """t candidate triplets; only those with ``valid`` count."""

    anchors: Tensor
    """int64 [t], rows of the local embeddings."""
    positives: Tensor
    """int64 [t], rows of the global batch."""
    negatives: Tensor
    """int64 [t], rows of the global batch."""
    paired: Tensor
    """bool [t]: whether there is such a positive. The share of these that become active triplets tells of learning."""
    valid: Tensor
    """bool [t]: whether there is such a positive and such a negative."""


def mine(
    miner: Miner,
    local: Tensor,
    everyone: Tensor,
    labels: Tensor,
    faces: Tensor,
    first: int,
    margin: float,
    *,
    distance: Distance = "squared",
    block: int | None = None,
) -> Triplets:
    """Triplets of the anchors ``local`` [n, d], which are rows ``first`` to first + n of ``everyone`` [b, d].

    ``labels`` and ``faces`` are int64 [b]. A face is no positive of itself, also where it stands in the batch twice:
    pairs are excluded by face, not by position. fp32 at least, autocast off: bf16 moved near positives by 12 %.

    batch_hard: farthest positive, nearest negative. semi_hard: for each anchor-positive pair the nearest negative
    farther than the positive and within the margin; a pair without one is skipped. seed: farthest positive, nearest
    semi-hard negative, else nearest negative.
    """
    with torch.no_grad(), torch.autocast(local.device.type, enabled=False):
        parts = [
            _mine_block(miner, part, margin)
            for part in blocks(local, everyone, labels, faces, first, distance, block)
        ]
    return Triplets(*(torch.cat(column) for column in zip(*parts, strict=True)))


def blocks(
    local: Tensor,
    everyone: Tensor,
    labels: Tensor,
    faces: Tensor,
    first: int,
    distance: Distance = "squared",
    block: int | None = None,
) -> Iterator[Block]:
    """The distances of the anchors, ``block`` rows at a time; arguments as of ``mine``."""
    runs = _Runs.of(labels)
    block = min(block or max(1, BLOCK_DISTANCES // len(everyone)), max(len(local), 1))
    space = _Workspace.of(_full_precision(everyone), block, distance)
    for start in range(0, len(local), block):
        rows = torch.arange(start, min(start + block, len(local)), device=local.device)
        yield Block.of(rows, _full_precision(local[start : start + block]), faces, first, runs, space)


Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _mine_block(miner: Miner, block: Block, margin: float) -> Columns:
    if miner == "semi_hard":
        if block.positives.shape[1] > SORT_ABOVE and block.to_negatives.dtype == torch.float32:
            return _semi_hard_by_sorting(block, margin)
        pairs = [_semi_hard_of(block, q, margin) for q in range(block.positives.shape[1])]
        return tuple(torch.cat(column) for column in zip(*pairs, strict=True))  # type: ignore[return-value]
    d_ap, positive, has_positive = block.farthest_positive()
    d_an, negative = block.to_negatives.min(dim=1)
    if miner == "seed":
        d_semi, semi = _nearest_semi_hard(block, d_ap, margin)
        negative = torch.where(d_semi.isfinite(), semi, negative)
    return block.rows, positive, negative, has_positive, has_positive & d_an.isfinite()


def _semi_hard_of(block: Block, q: int, margin: float) -> Columns:
    """The nearest semi-hard negative for the q-th positive of every row."""
    d_semi, semi = _nearest_semi_hard(block, block.d_positives[:, q], margin)
    paired = block.is_positive[:, q]
    return block.rows, block.positives[:, q], semi, paired, paired & d_semi.isfinite()


def _semi_hard_by_sorting(block: Block, margin: float) -> Columns:
    """The same for all positives of every row: one sort, and a binary search for each."""
    d_ap, b = block.d_positives, block.to_negatives.shape[1]
    keys = _sorted(_keys(block.to_negatives, torch.arange(b, device=d_ap.device)))
    place = torch.searchsorted(keys, _keys(d_ap, torch.tensor(_LOW_HALF)), right=True).clamp_max_(b - 1)
    negatives = keys.gather(1, place) & _LOW_HALF
    d_an = block.to_negatives.gather(1, negatives)
    valid = block.is_positive & (d_an > d_ap) & (d_an < d_ap + margin)
    rows = block.rows[:, None].expand_as(place)
    columns = (rows, block.positives, negatives, block.is_positive, valid)
    return tuple(column.flatten() for column in columns)  # type: ignore[return-value]


_LOW_HALF = 2**32 - 1


def _keys(distances: Tensor, low: Tensor) -> Tensor:
    """int64 keys that sort by distance, then by ``low``: floats of 0 or more sort as their bits do."""
    bits = distances.contiguous().view(torch.int32)
    return bits.long().bitwise_left_shift_(32).bitwise_or_(low.to(distances.device))


def _sorted(keys: Tensor) -> Tensor:
    """Each row sorted, in place where it can be. NumPy's vectorised sort is four times as fast as torch's on a CPU."""
    if keys.is_cuda:
        return keys.sort(dim=1).values
    keys.numpy().sort(axis=1)
    return keys


def _nearest_semi_hard(block: Block, d_ap: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Distance and row of the nearest negative in (d_ap, d_ap + margin); infinite where there is none."""
    d_an, row = block.nearest_beyond(d_ap)
    return torch.where(d_an < d_ap + margin, d_an, torch.inf), row


@dataclass(frozen=True)
class Block:
    """The distances of some anchors: to their positives as a short list, to their negatives as a row."""

    rows: Tensor  # int64 [r], local
    positives: Tensor  # int64 [r, q], global rows
    is_positive: Tensor  # bool [r, q]
    d_positives: Tensor  # [r, q]
    to_negatives: Tensor  # [r, b], infinite at the anchor's own identity; good until the next block
    scratch: _Workspace

    @classmethod
    def of(
        cls,
        rows: Tensor,
        anchors: Tensor,
        faces: Tensor,
        first: int,
        runs: _Runs,
        space: _Workspace,
    ) -> Block:
        distances = space.distances_of(anchors)
        mates, is_mate = runs.mates(rows + first)
        d_mates = space.to_mates(anchors, mates)
        is_positive = is_mate & (faces[mates] != faces[rows + first][:, None])
        return cls(rows, mates, is_positive, d_mates, distances.scatter_(1, mates, torch.inf), space)

    def nearest_beyond(self, d_ap: Tensor) -> tuple[Tensor, Tensor]:
        """Distance and row of each anchor's nearest negative that is farther than d_ap [r]; infinite if there is none."""
        beyond = self.scratch.where_beyond(self.to_negatives, d_ap[:, None])
        nearest = beyond.min(dim=1)
        return nearest.values, nearest.indices

    def farthest_positive(self) -> tuple[Tensor, Tensor, Tensor]:
        """Distance, global row, and whether there is any; [r] each."""
        farthest = torch.where(self.is_positive, self.d_positives, -torch.inf).max(dim=1)
        row = self.positives.gather(1, farthest.indices[:, None])[:, 0]
        return farthest.values, row, self.is_positive.any(dim=1)


@dataclass(frozen=True)
class _Workspace:
    """Two b-wide buffers and a mask that all blocks share. Fresh ones for every block cost more than the arithmetic,
    and the allocator's holes between them grew to 11 GB at b = 65,536."""

    everyone: Tensor  # [b, d]
    squares: Tensor  # [b]
    distance: Distance
    distances: Tensor  # [block, b]
    beyond: Tensor  # [block, b]
    mask: Tensor  # bool [block, b]

    @classmethod
    def of(cls, everyone: Tensor, block: int, distance: Distance) -> _Workspace:
        distances, beyond = everyone.new_empty(2, block, len(everyone))
        mask = torch.empty_like(distances, dtype=torch.bool)
        return cls(everyone, everyone.square().sum(1), distance, distances, beyond, mask)

    def distances_of(self, anchors: Tensor) -> Tensor:
        """Distances of anchors [r, d] to everyone, [r, b], never below 0; by the Gram matrix."""
        room = self.distances[: len(anchors)]
        torch.addmm(self.squares, anchors, self.everyone.T, alpha=-2, out=room)
        room.add_(anchors.square().sum(1)[:, None]).clamp_min_(0)
        return room.sqrt_() if self.distance == "l2" else room

    def to_mates(self, anchors: Tensor, mates: Tensor) -> Tensor:
        """Distances of anchors [r, d] to a few rows each, mates [r, q]: by differences, so that equal rows are at 0."""
        columns = [(anchors - self.everyone[mates[:, q]]).square().sum(1) for q in range(mates.shape[1])]
        squared = torch.stack(columns, dim=1)
        return squared.sqrt_() if self.distance == "l2" else squared

    def where_beyond(self, distances: Tensor, least: Tensor) -> Tensor:
        """The distances above ``least`` [r, 1], infinite elsewhere."""
        room, mask = self.beyond[: len(distances)], self.mask[: len(distances)]
        torch.gt(distances, least, out=mask)
        return torch.where(mask, distances, distances.new_tensor(torch.inf), out=room)


@dataclass(frozen=True)
class _Runs:
    """Rows sorted by label, so that an anchor's positives are a short run and not a mask b wide."""

    order: Tensor  # int64 [b], rows by label
    starts: Tensor  # int64 [b], where a row's run starts in ``order``
    lengths: Tensor  # int64 [b], how long it is

    @classmethod
    def of(cls, labels: Tensor) -> _Runs:
        _, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
        starts = counts.cumsum(0) - counts
        return cls(torch.argsort(labels, stable=True), starts[inverse], counts[inverse])

    def mates(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All rows of the same label, itself included: int64 [r, q] and which of them are real, bool [r, q].

        The others, where a person has fewer than q, repeat one of the same label.
        """
        offsets = torch.arange(int(self.lengths.max()), device=rows.device)
        real = offsets < self.lengths[rows][:, None]
        return self.order[self.starts[rows][:, None] + torch.where(real, offsets, 0)], real


def _full_precision(embeddings: Tensor) -> Tensor:
    embeddings = embeddings.detach()
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()
