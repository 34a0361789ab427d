"""The schedule is a pure function, shows everyone their due, and lets a row group feed one or two workers."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from facerec import schema
from facerec.errors import ConfigError
from facerec.training.batches import BatchConfig, BatchShape
from facerec.training.index import FaceIndex
from facerec.training.schedule import Schedule, draw, part
from facerec.training.takes import Spans, Tape

LARGE = BatchShape(p=16, k=4, micro_batch=16)
"""Two bundles of eight people, where the set is large."""


def index_of(*counts: int, chunk: int = 3, spans_a_group: int = 4) -> FaceIndex:
    """One identity a count, its faces in spans of at most ``chunk``, shuffled into row groups."""
    people = [
        (f"p{person:03d}", min(chunk, count - at))
        for person, count in enumerate(counts)
        for at in range(0, count, chunk)
    ]
    rows, first = [], 0
    for number, place in enumerate(np.random.default_rng(0).permutation(len(people))):
        group, within = divmod(number, spans_a_group)
        first = 0 if within == 0 else first + rows[-1]["rows"]
        identity, size = people[place]
        rows.append({"identity": identity, "file": "f", "row_group": group, "first_row": first, "rows": size})
    return FaceIndex(pa.Table.from_pylist(rows, schema.INDEX))


def schedule_of(*counts: int, p: int = 4, k: int = 4, seed: int = 0) -> tuple[Schedule, FaceIndex]:
    index = index_of(*counts)
    people = [name for name, faces in zip(index.identities, counts, strict=True) if faces >= 2]
    return Schedule(index, people, BatchShape(p=p, k=k, micro_batch=p), seed), index


def large_schedule(seed: int = 0) -> tuple[Schedule, FaceIndex]:
    """400 people of 24 faces in 300 row groups."""
    index = index_of(*[24] * 400, chunk=8)
    return Schedule(index, index.identities, LARGE, seed), index


def identity_of(index: FaceIndex, face: int) -> str:
    return index.identities[index.codes[np.searchsorted(index.starts, face, side="right") - 1]]


@pytest.mark.parametrize("large", [False, True])
def test_any_step_can_be_asked_first_and_gives_the_same_batch(large: bool) -> None:
    make = large_schedule if large else lambda: schedule_of(*range(2, 11))
    forwards, _ = make()
    batches = [forwards.batch(step) for step in range(330)]
    for step in (329, 11, 0, 170, 169):
        for again in (make()[0], forwards):
            batch = again.batch(step)
            assert np.array_equal(batch.faces, batches[step].faces)
            assert np.array_equal(batch.labels, batches[step].labels)


def test_another_seed_gives_other_batches() -> None:
    one, other = schedule_of(*[6] * 9)[0], schedule_of(*[6] * 9, seed=1)[0]
    assert not np.array_equal(one.batch(0).faces, other.batch(0).faces)


@pytest.mark.parametrize("large", [False, True])
def test_a_batch_is_p_people_of_k_distinct_faces_of_theirs_in_two_micro_batches_at_least(large: bool) -> None:
    schedule, index = large_schedule() if large else schedule_of(*range(4, 13))
    p, m = schedule.shape.p, schedule.shape.micro_batch
    for step in range(0, 300, 7):
        batch = schedule.batch(step)
        assert Counter(batch.labels.tolist()) == dict.fromkeys(batch.labels.tolist(), 4)
        assert len(set(batch.labels.tolist())) == p
        assert len(set(batch.faces.tolist())) == 4 * p
        for label, face in zip(batch.labels.tolist(), batch.faces.tolist(), strict=True):
            assert identity_of(index, face) == index.identities[label]
        for label in set(batch.labels.tolist()):
            assert len(set(np.flatnonzero(batch.labels == label) // m)) >= 2


@pytest.mark.parametrize("counts", [[7] * 9, [8] * 9, list(range(4, 13)), [24] * 400])
def test_in_no_epoch_anybody_is_shown_more_than_k_faces_off_their_due(counts: list[int]) -> None:
    schedule, index = large_schedule() if len(counts) == 400 else schedule_of(*counts)
    shown = np.zeros((12, len(counts)))
    for step in range(10 * sum(counts) // schedule.shape.faces):
        labels = schedule.batch(step).labels
        shown[schedule.epoch(step)] += np.bincount(labels, minlength=len(counts))
    for faces in shown[:9]:  # an epoch is whole steps, so it shows a few faces more than there are
        due = index.faces / index.faces.sum() * faces.sum()
        assert np.abs(faces - due).max() <= schedule.shape.k


def test_who_would_come_more_than_once_a_batch_comes_once() -> None:
    schedule, _ = schedule_of(100, 6, 6, 6, 6, 6)
    for step in range(40):
        labels = schedule.batch(step).labels[::4]
        assert 0 in labels
        assert len(set(schedule.batch(step).labels.tolist())) == 4


def test_a_batch_of_everybody_has_everybody_in_it() -> None:
    schedule, _ = schedule_of(2, 3, 30, 9, p=4)
    for step in range(20):
        assert set(schedule.batch(step).labels.tolist()) == {0, 1, 2, 3}


def test_people_of_few_faces_repeat_them_and_those_of_one_are_left_out() -> None:
    schedule, index = schedule_of(1, 2, 3, 2, 3)
    for step in range(10):
        names = {identity_of(index, face) for face in schedule.batch(step).faces.tolist()}
        assert names == {"p001", "p002", "p003", "p004"}
        assert len(set(schedule.batch(step).faces.tolist())) == 10


def test_the_rows_that_two_micro_batches_train_on_come_from_row_groups_of_their_own() -> None:
    schedule, index = large_schedule()
    window = [schedule.batch(step) for step in range(schedule._layout.steps)]
    read = []
    for worker in range(2):
        faces = np.concatenate([batch.faces[32 * worker : 32 * worker + 32] for batch in window])
        read.append(set(index.groups[np.searchsorted(index.starts, faces, side="right") - 1].tolist()))
    assert len(read[0] & read[1]) <= 1
    assert 32 * len(read[0]) < 1.15 * 32 * len(window)


@pytest.mark.parametrize("k, micro_batch", [(40, 16), (40, 10), (40, 8), (6, 2), (4, 2), (4, 8)])
def test_every_bundle_of_a_large_set_has_an_identity_however_small_the_micro_batch(
    k: int, micro_batch: int
) -> None:
    """K = 40 is FaceNet's; with fewer than 2m faces for an identity, some bundles had none."""
    index = index_of(*[12] * 1200, chunk=12, spans_a_group=1)
    shape = BatchConfig(p=8, k=k, micro_batch=micro_batch).fit(1200)
    schedule = Schedule(index, index.identities, shape, 0)
    bundles = schedule._layout.bundles
    assert len(bundles) > 1
    assert all(stop > first for first, stop in bundles)
    for step in (0, 1, 50, 51):
        labels = schedule.batch(step).labels
        assert set(Counter(labels.tolist()).values()) == {k}
        for label in set(labels.tolist()):
            assert len(set(np.flatnonzero(labels == label) // micro_batch)) >= 2


@pytest.mark.parametrize("faces, k", [(2, 4), (2, 32), (3, 8), (8, 32), (24, 4), (90, 8)])
@pytest.mark.parametrize("people", [2, 3, 6, 30, 400])
@pytest.mark.parametrize("p", [2, 3, 6, 16])
def test_every_step_has_a_batch_of_p_people_whatever_the_faces(
    people: int, faces: int, k: int, p: int
) -> None:
    """Empty epochs: 24 of 50 seeds at K = 4 with two people of two faces, and step 3 of six people of 8 at K = 32."""
    if p > people:
        with pytest.raises(ConfigError, match=rf"p is {p} but {people} training identities"):
            BatchConfig(p=p, k=k).fit(people)
        return
    shape = BatchConfig(p=p, k=k).fit(people)
    for seed in range(4 if people > 30 else 20):
        index = index_of(*[faces] * people, chunk=1 + seed % 4, spans_a_group=1 + seed % 5)
        schedule = Schedule(index, index.identities, shape, seed)
        steps = [*range(12), 300]
        for batch in map(schedule.batch, steps):
            assert len(batch.faces) == p * k
            assert len(set(batch.labels.tolist())) == p
        again = Schedule(index, index.identities, shape, seed)
        assert np.array_equal(again.batch(300).faces, schedule.batch(300).faces)


def test_an_epoch_is_several_passes_only_if_one_fills_no_batch() -> None:
    few, _ = schedule_of(3, 3, 2, 2, k=8, p=2)
    shown = np.zeros((9, 4))
    for step in range(60):
        shown[few.epoch(step) % 9] += np.bincount(few.batch(step).labels, minlength=4)
    due = np.array([3, 3, 2, 2]) / 10 * shown[:8].sum()
    assert few._tape.passes > 1
    assert (np.abs(shown[:8].sum(axis=0) - due) < due / 2).all()
    assert large_schedule()[0]._tape.passes == schedule_of(*range(2, 11))[0]._tape.passes == 1


def test_a_window_of_too_few_people_takes_further_row_groups() -> None:
    """2,000 people whose two faces lie in two row groups of their own: no window of 64 groups holds a pair by itself."""
    spans = [
        {
            "identity": f"p{person:04d}",
            "file": "f",
            "row_group": turn * 2000 + person,
            "first_row": 0,
            "rows": 1,
        }
        for turn in range(2)
        for person in range(2000)
    ]
    index = FaceIndex(pa.Table.from_pylist(spans, schema.INDEX))
    schedule = Schedule(index, index.identities, BatchShape(p=16, k=2, micro_batch=8), 0)
    assert not schedule._layout.whole
    for step in range(3):
        assert len(set(schedule.batch(step).labels.tolist())) == 16


@pytest.mark.parametrize("n", [1, 4, 9])
def test_a_draw_gives_everybody_their_turns_exactly_and_at_most_one_a_step(n: int) -> None:
    random = np.random.default_rng(n)
    for _ in range(50):
        steps = int(random.integers(1, 20))
        due = np.zeros(12, np.int64)
        while due.sum() < steps * n:
            due[random.choice(np.flatnonzero(due < steps))] += 1
        turns = draw(due, steps, n, random)
        assert np.array_equal(np.bincount(turns.reshape(-1), minlength=12), due)
        assert all(len(set(turn.tolist())) == n for turn in turns)


def test_who_meets_themselves_in_another_bundle_changes_places_and_nobody_loses_a_turn() -> None:
    random = np.random.default_rng(0)
    taken = np.stack([random.choice(30, 8, replace=False) for _ in range(12)])
    turns = draw(np.full(24, 4), 12, 8, random)
    everybody = np.ones(24, np.bool_)
    assert part(turns, np.arange(6, 30, dtype=np.int32), everybody, everybody, taken, random)
    assert np.bincount(turns.reshape(-1)).tolist() == [4] * 24
    for turn, others in zip(turns, taken, strict=True):
        assert len({*(turn + 6).tolist(), *others.tolist()}) == 16


def test_one_long_name_costs_no_memory_for_the_others() -> None:
    """As NumPy strings, 20,000 names took 1,000 characters of 4 bytes each: 80 MB, twice."""
    names = sorted(["x" * 1000, *(f"p{person:05d}" for person in range(19_999))])
    spans = {"file": "f", "row_group": 0, "first_row": 0, "rows": 2}
    index = FaceIndex(pa.Table.from_pylist([{"identity": name} | spans for name in names], schema.INDEX))
    tracemalloc.start()
    found = Spans.of(index, names[::2])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [names[code] for code in index.codes[::2]] == [names[2 * label] for label in found.labels]
    assert peak < 20e6


def test_epochs_follow_on_where_the_one_before_cut_each_tape() -> None:
    index = index_of(*range(2, 11))
    spans = Spans.of(index, index.identities)
    shape = BatchShape(p=4, k=4, micro_batch=4)
    tape, takes = Tape(spans, shape, 0), np.zeros(9)
    for epoch in range(8):
        whole = tape.stretch(epoch, 0, tape.length(epoch))
        assert whole.takes(0, tape.length(epoch)).sum() == tape.length(epoch)
        takes += np.bincount(spans.labels[whole.spans], whole.takes(0, tape.length(epoch)))
        assert np.abs(4 * takes - (epoch + 1) * index.faces).max() < 4
        piece = Tape(spans, shape, 0).stretch(epoch, 3, 9)
        expected = whole.takes(3, 9)
        assert np.array_equal(piece.spans[piece.takes(3, 9) > 0], whole.spans[expected > 0])


def test_the_index_finds_every_face_where_it_lies() -> None:
    spans = [("b", 0, 4, 3), ("a", 1, 0, 2), (None, 1, 2, 2), ("b", 1, 4, 1)]
    names = ("identity", "row_group", "first_row", "rows")
    rows = [dict(zip(names, span, strict=True)) | {"file": "f"} for span in spans]
    index = FaceIndex(pa.Table.from_pylist(rows, schema.INDEX))
    assert index.identities == ["a", "b"]
    assert index.codes.tolist() == [1, 0, -1, 1]
    assert index.faces.tolist() == [2, 4]
    assert [index.locate(o) for o in range(8)] == [("f", 0, r) for r in (4, 5, 6)] + [
        ("f", 1, r) for r in (0, 1, 2, 3, 4)
    ]
