"""Which triplets are trained on: exact mining of local anchors against the global batch.

Pure functions of tensors. A rank mines its own n rows against all b, in blocks of rows, so memory is O(b x block) and
the work a rank b^2 / W. Legend: n rows of this rank, b global batch, r rows of a block, q positives a row, d
embedding size. Distances are squared L2: on unit vectors in [0, 4].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from facerec.errors import ConfigError

Strategy = Literal["batch_hard", "semi_hard", "seed", "curriculum"]
Miner = Literal["batch_hard", "semi_hard", "seed"]

BLOCK = 1024
"""Rows mined at once: 1,024 x 65,536 distances are 256 MB."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """Which triplets, and how far apart the loss wants people."""

    strategy: Strategy = "semi_hard"
    """semi_hard never collapsed; batch_hard is stronger late; curriculum is the first, then the second; seed mixes."""
    margin: float = 0.2
    """How much farther than the positive the negative must be, in squared L2 (0 to 4)."""
    hard_after: float = 0.5
    """With curriculum: the fraction of all steps after which it turns to batch_hard."""

    def __post_init__(self) -> None:
        if self.strategy not in ("batch_hard", "semi_hard", "seed", "curriculum"):
            raise ConfigError(
                f"strategy is {self.strategy!r}; choose batch_hard, semi_hard, seed or curriculum (--mining.strategy)"
            )
        if not 0 < self.margin <= 4:
            raise ConfigError(
                f"margin is {self.margin}; squared distances lie in 0 to 4, choose above 0 (--mining.margin)"
            )
        if not 0 <= self.hard_after <= 1:
            raise ConfigError(f"hard_after is {self.hard_after}; choose from 0 to 1 (--mining.hard_after)")

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
    block: int = BLOCK,
) -> Triplets:
    """Triplets of the anchors ``local`` [n, d], which are rows ``first`` to first + n of ``everyone`` [b, d].

    ``labels`` and ``faces`` are int64 [b]. A face is no positive of itself, also where it stands in the batch twice:
    pairs are excluded by face, not by position. fp32 at least, autocast off: bf16 moved near positives by 12 %.

    batch_hard: farthest positive, nearest negative. semi_hard: for each anchor-positive pair the nearest negative
    farther than the positive and within the margin; a pair without one is skipped. seed: farthest positive, nearest
    semi-hard negative, else nearest negative.
    """
    runs = _Runs.of(labels)
    with torch.no_grad(), torch.autocast(local.device.type, enabled=False):
        local, everyone = _full_precision(local), _full_precision(everyone)
        parts = []
        for start in range(0, len(local), block):
            rows = torch.arange(start, min(start + block, len(local)), device=local.device)
            parts.append(
                _mine_block(miner, _Block.of(rows, local, everyone, labels, faces, first, runs), margin)
            )
    return Triplets(*(torch.cat(column) for column in zip(*parts, strict=True)))


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """Squared L2 of all pairs, [r, b], never below 0; by the Gram matrix."""
    return ((left * left).sum(1)[:, None] + (right * right).sum(1) - 2 * left @ right.T).clamp_min_(0)


Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _mine_block(miner: Miner, block: _Block, margin: float) -> Columns:
    if miner == "semi_hard":
        pairs = [_semi_hard_of(block, q, margin) for q in range(block.positives.shape[1])]
        return tuple(torch.cat(column) for column in zip(*pairs, strict=True))  # type: ignore[return-value]
    d_ap, positive, has_positive = block.farthest_positive()
    d_an, negative = block.to_negatives.min(dim=1)
    if miner == "seed":
        d_semi, semi = _nearest_semi_hard(block, d_ap, margin)
        negative = torch.where(d_semi.isfinite(), semi, negative)
    return block.rows, positive, negative, has_positive, has_positive & d_an.isfinite()


def _semi_hard_of(block: _Block, q: int, margin: float) -> Columns:
    """The nearest semi-hard negative for the q-th positive of every row."""
    d_semi, semi = _nearest_semi_hard(block, block.d_positives[:, q], margin)
    paired = block.is_positive[:, q]
    return block.rows, block.positives[:, q], semi, paired, paired & d_semi.isfinite()


def _nearest_semi_hard(block: _Block, d_ap: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Distance and row of the nearest negative in (d_ap, d_ap + margin); infinite where there is none."""
    distances, d_ap = block.to_negatives, d_ap[:, None]
    inside = (distances > d_ap) & (distances < d_ap + margin)
    nearest = torch.where(inside, distances, torch.inf).min(dim=1)
    return nearest.values, nearest.indices


@dataclass(frozen=True)
class _Block:
    """The distances of some anchors: to their positives as a short list, to their negatives as a row."""

    rows: Tensor  # int64 [r], local
    positives: Tensor  # int64 [r, q], global rows
    is_positive: Tensor  # bool [r, q]
    d_positives: Tensor  # [r, q]
    to_negatives: Tensor  # [r, b], infinite at the anchor's own identity

    @classmethod
    def of(
        cls,
        rows: Tensor,
        local: Tensor,
        everyone: Tensor,
        labels: Tensor,
        faces: Tensor,
        first: int,
        runs: _Runs,
    ) -> _Block:
        distances = squared_distances(local[rows], everyone)
        mates, is_mate = runs.mates(rows + first)
        d_mates = distances.gather(1, mates)
        is_positive = is_mate & (faces[mates] != faces[rows + first][:, None])
        same = labels[rows + first][:, None] == labels
        return cls(rows, mates, is_positive, d_mates, distances.masked_fill_(same, torch.inf))

    def farthest_positive(self) -> tuple[Tensor, Tensor, Tensor]:
        """Distance, global row, and whether there is any; [r] each."""
        farthest = torch.where(self.is_positive, self.d_positives, -torch.inf).max(dim=1)
        row = self.positives.gather(1, farthest.indices[:, None])[:, 0]
        return farthest.values, row, self.is_positive.any(dim=1)


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
        """All rows of the same label, itself included: int64 [r, q] and which of them are real, bool [r, q]."""
        offsets = torch.arange(int(self.lengths.max()), device=rows.device)
        real = offsets < self.lengths[rows][:, None]
        return self.order[torch.where(real, self.starts[rows][:, None] + offsets, 0)], real


def _full_precision(embeddings: Tensor) -> Tensor:
    embeddings = embeddings.detach()
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()
