"""Which faces are trained on at which step: a pure function of (seed, step), planned a window at a time.

An epoch is shown row group by row group (see takes), and cut into *windows* that feed some S whole global batches
each, so that the row groups of a few steps are read once and then done with. Where the set is large, the window is
cut into *bundles*, one for every two micro-batches, or for as many as hold the K faces of an identity: a bundle has row
groups of its own, and so a row group is read by the few workers that train on it, whatever their number.

Legend: P identities a batch, K faces an identity, m faces a micro-batch, G micro-batches a batch, S steps a window,
n identities of a bundle.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facerec import seeding
from facerec.training.batches import BatchShape
from facerec.training.index import FaceIndex, Ints
from facerec.training.takes import Spans, Stretch, Tape

BUNDLE_GROUPS = 16
"""Row groups a bundle and window: those at its two ends are shared with its neighbours, so few would be read twice."""

WINDOW_GROUPS = 64
"""Row groups of a window that is not cut into bundles: some 400 MB of faces."""

CHOICE = 4
"""Identities that a window offers for each one that a step takes, at least."""


@dataclass(frozen=True)
class Batch:
    """One global batch. An identity's K faces are dealt out to the micro-batches of its bundle, at least two."""

    faces: Ints
    """Ordinals, [P * K]."""
    labels: Ints
    """Identity numbers, [P * K]."""


class Schedule:
    """The sequence of global batches: P different identities each, whose turns are in proportion to their faces.

    An identity that is due more than once in a batch comes once, and others take its place. An identity with fewer
    than K faces shows some of them more than once. ``identities`` have two faces or more each, and there are at
    least P of them: then every step has a batch.
    """

    def __init__(self, index: FaceIndex, identities: Sequence[str], shape: BatchShape, seed: int) -> None:
        self.shape, self._seed = shape, seed
        self._spans = Spans.of(index, identities)
        self._tape = Tape(self._spans, shape, seed)
        self._layout = Layout.of(shape, self._spans)
        self._firsts = [0]  # each epoch's first step
        self._window = _Window(0, 0, 0)
        self._labels, self._faces = np.empty((0, 0), np.int64), np.empty((0, 0, 0), np.int64)

    def batch(self, step: int) -> Batch:
        """The global batch of a step, counted from 0."""
        if not self._window.first <= step < self._window.stop:
            self._window = self._window_of(step)
            self._labels, self._faces = self._planned(self._window)
        at, order = step - self._window.first, self._layout.order
        return Batch(
            faces=self._faces[at].reshape(-1)[order],
            labels=np.repeat(self._labels[at], self.shape.k)[order],
        )

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to: every face is shown once in each, as far as K faces at a time allow.

        If one pass over the faces fills no batch, an epoch is several passes (see Tape).
        """
        while self._firsts[-1] <= step:
            takes = self._tape.length(len(self._firsts) - 1)
            self._firsts.append(self._firsts[-1] + -(-takes // self.shape.p))
        return bisect.bisect_right(self._firsts, step) - 1

    def _window_of(self, step: int) -> _Window:
        epoch = self.epoch(step)
        first, stop = self._firsts[epoch : epoch + 2]
        windows = max(1, round((stop - first) / self._layout.steps))  # all about as long
        number = ((step - first + 1) * windows - 1) // (stop - first)
        cuts = [first + (stop - first) * n // windows for n in (number, number + 1)]
        return _Window(epoch, *cuts)

    def _planned(self, window: _Window) -> tuple[Ints, Ints]:
        """Identities [S, P] and their faces [S, P, K] of a window's batches."""
        steps, p = window.stop - window.first, self.shape.p
        low = (window.first - self._firsts[window.epoch]) * p
        high = min(low + steps * p, self._tape.length(window.epoch))  # an epoch's last batch may lack a few
        stretch = self._tape.stretch(window.epoch, low, high)
        labels = np.full((steps, p), -1)
        faces = np.empty((steps, p, self.shape.k), np.int64)
        placed = np.zeros(len(self._spans.faces), np.bool_)  # identities of the bundles before
        random = seeding.generator(self._seed, "rest", window.first)
        rest = self._tape.rest(window.epoch) + random.random(len(placed))  # nobody is first among equals
        for bundle, (first, stop) in enumerate(self._layout.bundles):
            random = seeding.generator(self._seed, "window", window.first, bundle)
            takes = stretch.takes(*(low + (high - low) * identity // p for identity in (first, stop)))
            for least in (
                stop - first,
                stop,
            ):  # ``stop`` identities are enough to be others than those before
                pool = self._pool(stretch, takes, least, random)
                due = pool.turns(
                    self._spans.labels[stretch.spans], takes, rest, steps, stop - first, self.shape.k
                )
                turns = draw(due, steps, stop - first, random)
                if part(turns, pool.labels, pool.able, placed[pool.labels], labels[:, :first], random):
                    break
            labels[:, first:stop] = pool.labels[turns]
            placed[labels[:, first:stop]] = True
            faces[:, first:stop] = pool.faces_of(turns, self.shape.k)
        return labels, faces

    def _pool(self, stretch: Stretch, takes: Ints, n: int, random: np.random.Generator) -> Pool:
        """The faces of the row groups that hold the takes, and of more row groups until ``n`` identities can come."""
        spans = self._spans
        if self._layout.whole:
            return Pool.of(spans, np.arange(len(spans.rows)), random)
        groups = np.unique(spans.groups[stretch.spans[takes > 0]]).astype(np.int64)
        if spans.paired(groups) < n:
            groups = spans.with_pairs(groups, n, random)
        return Pool.of(spans, spans.in_groups(groups), random)


@dataclass(frozen=True)
class _Window:
    epoch: int
    first: int
    """Step."""
    stop: int
    """Last step + 1."""


@dataclass(frozen=True)
class Layout:
    """How windows and batches are cut: decided by the set and the batch, never by the number of workers."""

    bundles: tuple[tuple[int, int], ...]
    """First and last + 1 of the batch's P identities, of each bundle."""
    order: Ints
    """[P * K]: which of the faces, listed identity by identity, stands in each row of the batch."""
    steps: int
    """S."""
    whole: bool
    """Whether a window offers the whole set."""

    @classmethod
    def of(cls, shape: BatchShape, spans: Spans) -> Layout:
        """Bundles if there are many identities in many row groups; else one window for all, at most the whole set.

        A bundle has 2 micro-batches, or more if an identity has more than 2m faces: every bundle has an identity.
        """
        width = max(2, math.ceil(shape.k / shape.micro_batch))
        bundles = max(1, shape.groups // width)
        needed = _row_groups_for(math.ceil(shape.p / bundles), spans, BUNDLE_GROUPS)
        if len(spans.faces) < 2 * CHOICE * shape.p or spans.row_groups < 2 * bundles * needed:
            bundles, needed = 1, _row_groups_for(shape.p, spans, WINDOW_GROUPS)
        share = min(1.0, bundles * needed / spans.row_groups)
        steps = max(1, int(share * spans.faces.sum()) // shape.faces)
        cuts = [*range(0, width * bundles, width), shape.groups] if bundles > 1 else [0, shape.groups]
        firsts = [cut * shape.micro_batch // shape.k for cut in cuts]
        order = np.concatenate([_dealt(a, b, shape.micro_batch) for a, b in itertools.pairwise(cuts)])
        return cls(tuple(itertools.pairwise(firsts)), order, steps, whole=share == 1)


def _row_groups_for(identities: int, spans: Spans, least: int) -> int:
    each = len(spans.rows) / spans.row_groups
    return max(least, math.ceil(CHOICE * identities / each))


def _dealt(first: int, stop: int, m: int) -> Ints:
    """The rows of micro-batches ``first`` to ``stop``, dealt like cards, so that neighbours part."""
    count = stop - first
    return first * m + np.arange(count * m).reshape(m, count).T.reshape(-1)


@dataclass(frozen=True)
class Pool:
    """The faces that a bundle may take, by identity."""

    labels: NDArray[np.int32]
    """Their identities, [i], ascending."""
    sizes: Ints
    """Faces of each, [i]."""
    ordinals: Ints
    """All faces, identity by identity, each one's shuffled."""

    @classmethod
    def of(cls, spans: Spans, chosen: Ints, random: np.random.Generator) -> Pool:
        """All faces of some spans."""
        labels, owner = np.unique(spans.labels[chosen], return_inverse=True)
        sizes = np.bincount(owner, spans.rows[chosen]).astype(np.int64)
        owners, ordinals = np.repeat(owner, spans.rows[chosen]), spans.ordinals(chosen)
        order = np.lexsort((random.random(len(owners)), owners))
        return cls(labels, sizes, ordinals[order])

    @property
    def able(self) -> NDArray[np.bool_]:
        """Which identities have two faces or more here, [i]: one face, however often, makes no pair."""
        return self.sizes >= 2

    def turns(
        self,
        labels: NDArray[np.int32],
        takes: Ints,
        rest: NDArray[np.float64],
        steps: int,
        n: int,
        k: int,
    ) -> Ints:
        """Turns of each identity in the window, [i]: its ``takes``, at most one a step, n a step in all.

        Missing turns go to the identities with the most faces left on their tapes, ``rest`` [l], which is reduced by
        them. At least ``n`` identities of the pool have two faces or more.
        """
        place = np.searchsorted(self.labels, labels[takes > 0])
        due = np.bincount(place, takes[takes > 0], minlength=len(self.labels)).astype(np.int64)
        due = np.where(self.able, np.minimum(due, steps), 0)
        while short := steps * n - int(due.sum()):
            room = np.flatnonzero(self.able & (due < steps))
            most = room[np.argsort(-rest[self.labels[room]], kind="stable")][:short]
            due[most] += 1
            rest[self.labels[most]] -= k
        return due

    def faces_of(self, turns: Ints, k: int) -> Ints:
        """K faces for each turn of an identity, [S, n, K]: all others come before one comes again."""
        flat = turns.reshape(-1)
        order = np.argsort(flat, kind="stable")
        ranked = flat[order]
        turn = np.empty_like(flat)
        turn[order] = np.arange(len(flat)) - np.searchsorted(ranked, ranked)
        firsts = np.cumsum(self.sizes) - self.sizes
        nth = (turn[:, None] * k + np.arange(k)) % self.sizes[flat][:, None]
        return self.ordinals[firsts[flat][:, None] + nth].reshape(*turns.shape, k)


def draw(due: Ints, steps: int, n: int, random: np.random.Generator) -> Ints:
    """Who comes at which step, [S, n], each as often as is due and at most once a step; exact, and else at random.

    Weighted sampling without replacement (Efraimidis and Spirakis 2006), but for those who must come at every step
    that is left.
    """
    left, turns = due.copy(), np.empty((steps, n), np.int64)
    for step in range(steps):
        with np.errstate(divide="ignore"):
            keys = np.log(random.random(len(left))) / left  # -inf where nothing is left
        keys[left == steps - step] = 1.0
        turns[step] = np.sort(np.argpartition(-keys, n - 1)[:n])  # a partition's order differs between CPUs
        left[turns[step]] -= 1
    return turns


def part(
    turns: Ints,
    labels: NDArray[np.int32],
    able: NDArray[np.bool_],
    shared: NDArray[np.bool_],
    taken: Ints,
    random: np.random.Generator,
) -> bool:
    """Where a step has an identity already (``taken``, labels [S, x]), swap its turn [S, n] with one of another step.

    In place. Only the ``shared`` ones of ``labels`` [i] can be met. If no other step will have it, an ``able``
    identity that the step lacks takes its turn. Returns whether all identities of each step differ: False if the
    step has all of them already.
    """
    for step, place in np.argwhere(shared[turns]):
        if labels[turns[step, place]] in taken[step] and not (
            _swapped(turns, labels, taken, step, place, random)
            or _replaced(turns, labels, able, taken, step, place, random)
        ):
            return False
    return True


def _swapped(
    turns: Ints,
    labels: NDArray[np.int32],
    taken: Ints,
    step: int,
    place: int,
    random: np.random.Generator,
) -> bool:
    mine = turns[step, place]
    for other in random.permutation(len(turns)):
        if mine in turns[other] or labels[mine] in taken[other]:
            continue
        fits = ~np.isin(labels[turns[other]], taken[step]) & ~np.isin(turns[other], turns[step])
        if fits.any():
            their = random.choice(np.flatnonzero(fits))
            turns[step, place], turns[other, their] = turns[other, their], mine
            return True
    return False


def _replaced(
    turns: Ints,
    labels: NDArray[np.int32],
    able: NDArray[np.bool_],
    taken: Ints,
    step: int,
    place: int,
    random: np.random.Generator,
) -> bool:
    free = able & ~np.isin(labels, taken[step])
    free[turns[step]] = False
    if free.any():
        turns[step, place] = random.choice(np.flatnonzero(free))
    return bool(free.any())
