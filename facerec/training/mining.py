"""Which triplets are trained on: exact mining of local anchors against the global batch.

Pure functions of tensors. A rank mines its own n rows against all b, in blocks of rows, so memory is O(b x block) and
the work a rank b^2 / W. Legend: n rows of this rank, b global batch, r rows of a block, q positives a row, d
embedding size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from facerec.errors import ConfigError
from facerec.training.distances import Anchors, Block, Distance, blocks

Miner = Literal["batch_hard", "semi_hard", "seed", "batch_all", "n_pair", "multi_similarity"]
Strategy = Literal["batch_hard", "semi_hard", "seed", "batch_all", "n_pair", "multi_similarity", "curriculum"]

ALPHA, BETA, BASE, EPSILON = 2.0, 50.0, 0.5, 0.1
"""Of multi_similarity, as pytorch-metric-learning has them: scales of positives and negatives, and cosines. See dense."""
SORT_ABOVE = {"cpu": 8, "cuda": 64}
"""Positives above which semi-hard sorts a row once instead of searching it for each, by kind of device. On a CPU a sort
costs as much as eight searches. The number for a GPU is an estimate that nobody has measured: a search moves only 12 bytes per
distance, and a sort passes over its 64-bit keys many times. ``make bench-gpu`` compares both at 31 positives."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """Which triplets, and how far apart the loss wants people."""

    strategy: Strategy = "semi_hard"
    """semi_hard never collapsed; batch_hard may, early above all; curriculum is the first, then the second; seed mixes;
    batch_all takes every triplet there is; n_pair each pair against all negatives at once, with ``soft``;
    multi_similarity each anchor's pairs that are out of order, positives and negatives apart, without a margin."""
    margin: float = 0.2
    """How much farther than the positive the negative must be, in ``distance``. With ``soft`` it only says which
    negatives are semi-hard; n_pair and multi_similarity have none."""
    distance: Distance = "squared"
    """squared L2 (FaceNet's; 0 to 4 on unit vectors), or plain l2 (0 to 2)."""
    soft: float = 0.0
    """Above 0: softplus(soft * (d_ap - d_an)) in place of the hinge (Hermans et al. 2017), so nothing is ever done. With
    n_pair the scale of its exponentials."""
    hard_below: float = 0.2
    """With curriculum: the share of pairs with a semi-hard negative below which it turns to batch_hard, for good. It falls
    the sooner the smaller margin and batch are."""
    hard_after: float = 1.0
    """With curriculum: the fraction of all steps after which it turns at the latest; 1 for never."""
    shares: int = 1
    """Above 1: the batch's people are dealt into so many shares that are mined apart, as so many workers would that see
    only their own; to study what mining across workers is worth."""

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise ConfigError(
                f"strategy is {self.strategy!r}; choose one of {', '.join(get_args(Strategy))} (--mining.strategy)"
            )
        if self.distance not in get_args(Distance):
            raise ConfigError(f"distance is {self.distance!r}; choose squared or l2 (--mining.distance)")
        most = 4 if self.distance == "squared" else 2
        if not 0 < self.margin <= most:
            raise ConfigError(
                f"margin is {self.margin}; {self.distance} distances lie in 0 to {most}, choose above 0 (--mining.margin)"
            )
        if self.soft < 0:
            raise ConfigError(f"soft is {self.soft}; choose 0 for the hinge, or above (--mining.soft)")
        if self.strategy == "n_pair" and not self.soft:
            raise ConfigError("n_pair has no hinge; choose soft above 0, like 5 (--mining.soft)")
        if self.strategy == "multi_similarity" and self.distance != "squared":
            raise ConfigError("multi_similarity is of cosines; choose squared (--mining.distance)")
        if self.shares < 1:
            raise ConfigError(
                f"shares is {self.shares}; choose 1 for the global batch, or above (--mining.shares)"
            )
        for name in ("hard_below", "hard_after"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; choose from 0 to 1 (--mining.{name})")

    def loss_at_collapse(self, p: int, k: int) -> float:
        """The loss of a batch of P identities x K faces where all distances are equal."""
        if self.strategy == "n_pair":
            return math.log1p((p // self.shares - 1) * k)
        if self.strategy == "multi_similarity":
            pull = math.log1p((k - 1) * math.exp(ALPHA * (BASE - 1))) / ALPHA
            return pull + math.log1p((p // self.shares - 1) * k * math.exp(BETA * (1 - BASE))) / BETA
        return math.log(2) if self.soft else self.margin


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
    anchors: Anchors,
    margin: float,
    *,
    distance: Distance = "squared",
    block: int | None = None,
) -> Triplets:
    """The anchors' triplets. fp32 at least, autocast off: bf16 moved near positives by 12 %.

    batch_hard: farthest positive, nearest negative. semi_hard: for each anchor-positive pair the nearest negative
    farther than the positive and within the margin; a pair without one is skipped. seed: farthest positive, nearest
    semi-hard negative, else nearest negative.
    """
    with torch.no_grad(), torch.autocast(anchors.local.device.type, enabled=False):
        parts = [mine_block(miner, part, margin) for part in blocks(anchors, distance, block)]
    return Triplets(*(torch.cat(column) for column in zip(*parts, strict=True)))


Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""The fields of Triplets."""


def mine_block(miner: Miner, block: Block, margin: float) -> Columns:
    """The triplets of the anchors of one block."""
    if miner == "semi_hard":
        enough = SORT_ABOVE.get(block.to_negatives.device.type, SORT_ABOVE["cpu"])
        if block.positives.shape[1] > enough and block.to_negatives.dtype == torch.float32:
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
    place = torch.searchsorted(keys, _keys(d_ap, _LOW_HALF), right=True).clamp_max_(b - 1)
    negatives = keys.gather(1, place) & _LOW_HALF
    d_an = block.to_negatives.gather(1, negatives)
    valid = block.is_positive & (d_an > d_ap) & (d_an < d_ap + margin)
    rows = block.rows[:, None].expand_as(place)
    columns = (rows, block.positives, negatives, block.is_positive, valid)
    return tuple(column.flatten() for column in columns)  # type: ignore[return-value]


_LOW_HALF = 2**32 - 1


def _keys(distances: Tensor, low: Tensor | int) -> Tensor:
    """int64 keys that sort by distance, then by ``low``: floats of 0 or more sort as their bits do."""
    bits = distances.contiguous().view(torch.int32)
    return bits.long().bitwise_left_shift_(32).bitwise_or_(low)


def _sorted(keys: Tensor) -> Tensor:
    """Each row sorted, in place where it can be. NumPy's vectorised sort is four times as fast as torch's on a CPU."""
    if keys.device.type != "cpu":
        return keys.sort(dim=1).values
    keys.numpy().sort(axis=1)
    return keys


def _nearest_semi_hard(block: Block, d_ap: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Distance and row of the nearest negative in (d_ap, d_ap + margin); infinite where there is none."""
    d_an, row = block.nearest_beyond(d_ap)
    return torch.where(d_an < d_ap + margin, d_an, torch.inf), row
