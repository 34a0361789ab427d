"""Distances of local anchors to the global batch, a block of rows at a time: what miners and losses look at.

Legend: n rows of this rank, b global batch, r rows of a block, q faces of a person at most, d embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facerec.models.device import on_device

Ints = NDArray[np.int64]
Distance = Literal["squared", "l2"]
"""Squared L2, on unit vectors in [0, 4], or L2, in [0, 2]."""

BLOCK_DISTANCES = 2**24
"""Distances looked at together, 64 MB in fp32: all rows of a batch of 4,096, and 256 rows of one of 65,536."""


@dataclass(frozen=True)
class Anchors:
    """A rank's own embeddings, and the global batch that each of them is mined against.

    Labels and faces are on the host, where the loader made them: whatever depends on them needs no wait for the device.
    """

    local: Tensor
    """[n, d]: rows ``first`` to first + n of ``everyone``, with this rank's graph."""
    everyone: Tensor
    """[b, d]."""
    labels: Ints
    """[b]."""
    faces: Ints
    """[b]. A face is not its own positive, also if the batch contains it twice."""
    first: int = 0

    def among(self, rows: NDArray[np.bool_]) -> Anchors:
        """Some rows of the global batch, [b], by themselves. They keep their order, so the anchors stay adjacent."""
        mine, device = rows[self.first : self.first + len(self.local)], self.local.device
        local = self.local[on_device(np.flatnonzero(mine), device)]
        everyone = self.everyone[on_device(np.flatnonzero(rows), device)]
        return Anchors(
            local, everyone, self.labels[rows], self.faces[rows], first=int(rows[: self.first].sum())
        )

    def detached(self) -> Anchors:
        """The same without a graph."""
        return replace(self, local=self.local.detach(), everyone=self.everyone.detach())


def blocks(anchors: Anchors, distance: Distance = "squared", block: int | None = None) -> Iterator[Block]:
    """The distances of the anchors, ``block`` rows at a time."""
    local = anchors.local
    runs = _Runs.of(anchors.labels, anchors.faces, local.device)
    block = min(block or max(1, BLOCK_DISTANCES // len(anchors.everyone)), max(len(local), 1))
    space = _Workspace.of(_full_precision(anchors.everyone), block, distance)
    for start in range(0, max(len(local), 1), block):  # a block of none, for a rank with none of a share
        rows = torch.arange(start, min(start + block, len(local)), device=local.device)
        vectors = _full_precision(local[start : start + block])
        yield Block.of(rows, vectors, anchors.first, runs, space)


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
        first: int,
        runs: _Runs,
        space: _Workspace,
    ) -> Block:
        distances = space.distances_of(anchors)
        mates, is_mate = runs.mates(rows + first)
        d_mates = space.to_mates(anchors, mates)
        is_positive = is_mate & (runs.faces[mates] != runs.faces[rows + first][:, None])
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
    infinite: Tensor  # scalar; a new one for each block would make the host wait for the device

    @classmethod
    def of(cls, everyone: Tensor, block: int, distance: Distance) -> _Workspace:
        distances, beyond = everyone.new_empty(2, block, len(everyone))
        mask = torch.empty_like(distances, dtype=torch.bool)
        infinite = everyone.new_full((), torch.inf)
        return cls(everyone, everyone.square().sum(1), distance, distances, beyond, mask, infinite)

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
        return torch.where(mask, distances, self.infinite, out=room)


@dataclass(frozen=True)
class _Runs:
    """Rows sorted by label, so that an anchor's positives are a short run and not a mask of width b."""

    order: Tensor  # int64 [b], rows by label
    starts: Tensor  # int64 [b], where a row's run starts in ``order``
    lengths: Tensor  # int64 [b], how long it is
    faces: Tensor  # int64 [b]
    longest: int

    @classmethod
    def of(cls, labels: Ints, faces: Ints, device: torch.device) -> _Runs:
        _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        first = np.cumsum(counts) - counts
        table = np.stack([np.argsort(labels, kind="stable"), first[inverse], counts[inverse], faces])
        order, starts, lengths, numbers = on_device(table, device).unbind()
        return cls(order, starts, lengths, numbers, int(counts.max(initial=1)))

    def mates(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All rows of the same label, itself included: int64 [r, q] and which of them are real, bool [r, q].

        Where a person has fewer than q, the others repeat a row of the same label.
        """
        offsets = torch.arange(self.longest, device=rows.device)
        real = offsets < self.lengths[rows][:, None]
        return self.order[self.starts[rows][:, None] + torch.where(real, offsets, 0)], real


def _full_precision(embeddings: Tensor) -> Tensor:
    embeddings = embeddings.detach()
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()
