"""Takes: whose faces come next in an epoch, and from which row groups.

A *take* is K faces of one identity. Each identity's faces, epoch after epoch, are a tape that is cut every K faces:
so an identity of c faces has c / K takes an epoch, rounded such that over any number of epochs it is shown less than
K faces off its due. The takes of an epoch come row group by row group, in an order shuffled anew each time.

Everything is a pure function of (seed, epoch), and flat arrays: 10^8 faces are 6 million spans.
Legend: s spans, l identities, r row groups.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from facerec import seeding
from facerec.training.batches import BatchShape
from facerec.training.index import FaceIndex, Ints


@dataclass(frozen=True)
class Spans:
    """The spans of the training identities, row group by row group."""

    labels: NDArray[np.int32]
    """Whose, [s]: a place in the training identities."""
    starts: Ints
    """Ordinal of the first face, [s]."""
    rows: NDArray[np.int32]
    """Faces, [s]."""
    groups: NDArray[np.int32]
    """Row group, [s], ascending."""
    first_of_group: Ints
    """Where each row group's spans begin, [r + 1]."""
    before: NDArray[np.int32]
    """Faces of the same identity in the spans before, [s]."""
    faces: Ints
    """Faces of each identity, [l]."""

    @classmethod
    def of(cls, index: FaceIndex, identities: Sequence[str]) -> Spans:
        """The spans of ``identities``, which are names of the index; row groups of other people are left out.

        Names stay strings of their own length: as a NumPy array, every name would take the memory of the longest.
        """
        names = pa.array(identities, pa.string())
        label_of = np.full(len(index.identities) + 1, -1, np.int32)  # the last is for spans without a name
        label_of[pc.index_in(names, pa.array(index.identities, pa.string()))] = np.arange(
            len(identities), dtype=np.int32
        )
        labels = label_of[index.codes]
        spans = np.flatnonzero(labels >= 0)
        spans = spans[np.argsort(index.groups[spans], kind="stable")]
        groups = index.groups[spans]
        groups = np.cumsum(np.diff(groups, prepend=groups[:1]) != 0, dtype=np.int32)
        labels, rows = labels[spans], index.rows[spans].astype(np.int32)
        first_of_group = np.searchsorted(groups, np.arange(groups[-1] + 2))
        faces = np.bincount(labels, rows).astype(np.int64)
        return cls(labels, index.starts[spans], rows, groups, first_of_group, _before(labels, rows), faces)

    @property
    def row_groups(self) -> int:
        """r, row groups that hold any of these faces."""
        return len(self.first_of_group) - 1

    def in_groups(self, groups: Ints) -> Ints:
        """All spans of some row groups, in the order of these."""
        each = [np.arange(self.first_of_group[g], self.first_of_group[g + 1]) for g in groups]
        return np.concatenate([np.empty(0, np.int64), *each])

    def ordinals(self, spans: Ints) -> Ints:
        """The ordinals of all faces of some spans, span by span."""
        rows = self.rows[spans].astype(np.int64)
        return np.repeat(self.starts[spans] - (np.cumsum(rows) - rows), rows) + np.arange(rows.sum())

    def paired(self, groups: Ints) -> int:
        """How many identities have two faces or more in some row groups."""
        spans = self.in_groups(groups)
        return int((np.bincount(self.labels[spans], self.rows[spans]) >= 2).sum())

    def with_pairs(self, groups: Ints, n: int, random: np.random.Generator) -> Ints:
        """``groups`` and the fewest others, in random order, with which ``n`` identities have two faces or more."""
        others = random.permutation(np.setdiff1d(np.arange(self.row_groups), groups))
        enough = bisect.bisect_left(
            range(len(others)), n, key=lambda count: self.paired(np.union1d(groups, others[:count]))
        )
        return np.union1d(groups, others[:enough])


def _before(labels: NDArray[np.int32], rows: NDArray[np.int32]) -> NDArray[np.int32]:
    order = np.argsort(labels, kind="stable")
    running = np.cumsum(rows[order], dtype=np.int64)
    counts = np.bincount(labels)
    of_others = np.concatenate([[0], running])[np.cumsum(counts) - counts]
    running -= rows[order]
    running -= np.repeat(of_others, counts)
    before = np.empty(len(labels), np.int32)
    before[order] = running
    return before


@dataclass(frozen=True)
class Stretch:
    """A piece of an epoch: spans in the order of their row groups, and which takes fall to each."""

    spans: Ints
    """Places in Spans, [n]."""
    starts: Ints
    """Number of the span's first take within the epoch, [n]."""
    stops: Ints
    """Number after its last take, [n]."""

    def takes(self, low: int, high: int) -> Ints:
        """How many takes of each span have numbers from ``low`` up to ``high``, [n]."""
        return np.clip(self.stops, low, high) - np.clip(self.starts, low, high)


class Tape:
    """All identities' tapes, one epoch at a time.

    An epoch is one pass over the faces. If some pass holds fewer takes than a batch needs, because people or
    photographs are few beside P and K, an epoch is the fewest passes that always hold enough.
    """

    def __init__(self, spans: Spans, shape: BatchShape, seed: int) -> None:
        self._spans, self._k, self._seed = spans, shape.k, seed
        # Without a phase of its own, everybody with as many faces would gain their extra take in the same epoch.
        self._phase = seeding.generator(seed, "phase").integers(0, shape.k, len(spans.faces))
        self.passes = self._fewest_passes(shape.p)
        self._opened = -1

    def _fewest_passes(self, p: int) -> int:
        """The fewest passes that hold at least ``p`` takes, wherever they begin."""
        faces, k = self._spans.faces, self._k
        if (faces // k).sum() >= p:
            return 1
        cuts = np.array([((number * faces + self._phase) // k).sum() for number in range(2 * k)])
        return next(
            (passes for passes in range(1, k) if (cuts[passes : passes + k] - cuts[:k]).min() >= p), k
        )

    def length(self, epoch: int) -> int:
        """Takes of an epoch, at least P."""
        ends = (epoch * self.passes, (epoch + 1) * self.passes)
        before, after = (((end * self._spans.faces + self._phase) // self._k).sum() for end in ends)
        return int(after - before)

    def rest(self, epoch: int) -> Ints:
        """Faces that each identity has on its tape since the cut before the epoch's end, [l]: below K."""
        return ((epoch + 1) * self.passes * self._spans.faces + self._phase) % self._k

    def stretch(self, epoch: int, low: int, high: int) -> Stretch:
        """The takes from ``low`` up to ``high`` of an epoch."""
        self._open(epoch)
        first = int(np.searchsorted(self._ends, low, side="right"))
        last = int(np.searchsorted(self._ends, high, side="left"))
        spans = self._spans.in_groups(self._order[first : last + 1])
        takes = self._takes[spans].astype(np.int64)
        stops = (int(self._ends[first - 1]) if first else 0) + np.cumsum(takes)
        return Stretch(spans, np.clip(stops - takes, low, high), np.clip(stops, low, high))

    def _open(self, epoch: int) -> None:
        if epoch == self._opened:
            return
        spans, first = self._spans, epoch * self.passes
        self._takes = self._takes_of(first)
        for further in range(first + 1, first + self.passes):
            self._takes += self._takes_of(further)
        by_group = np.add.reduceat(self._takes, spans.first_of_group[:-1], dtype=np.int64)
        self._order = seeding.generator(self._seed, "row groups", epoch).permutation(spans.row_groups)
        self._ends = np.cumsum(by_group[self._order])
        self._opened = epoch

    def _takes_of(self, number: int) -> NDArray[np.int32]:
        """Takes that each span gets in one pass, [s]."""
        spans, k = self._spans, self._k
        place = ((number * spans.faces + self._phase) % k).astype(np.int32)[spans.labels]
        place += spans.before
        place %= k
        place += spans.rows
        place //= k
        return place
