"""The schedule is a pure function, shows everyone their due, and lets a row group feed one or two workers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from facerec import schema
from facerec.errors import DatasetError
from facerec.training.batches import BatchShape
from facerec.training.index import FaceIndex
from facerec.training.schedule import Schedule, draw, part, trainable
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
    return Schedule(
        index, trainable(index, index.identities), BatchShape(p=p, k=k, micro_batch=p), seed
    ), index


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
    assert trainable(index, index.identities) == ["p001", "p002", "p003", "p004"]
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


def test_a_window_of_too_few_people_is_refused_with_the_numbers() -> None:
    index = index_of(*[512] * 40, chunk=512, spans_a_group=1)
    one_a_group = Schedule(index, index.identities, BatchShape(p=16, k=4, micro_batch=16), 0)
    one_a_group.batch(0)
    index = index_of(*[2] * 16, *[1] * 30, chunk=1)
    with pytest.raises(DatasetError, match=r"holds 16 identities and a batch needs 20.*--batch\.p"):
        Schedule(index, index.identities, BatchShape(p=20, k=4, micro_batch=20), 0).batch(0)


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
    part(turns, np.arange(6, 30, dtype=np.int32), np.ones(24, np.bool_), taken, random)
    assert np.bincount(turns.reshape(-1)).tolist() == [4] * 24
    for turn, others in zip(turns, taken, strict=True):
        assert len({*(turn + 6).tolist(), *others.tolist()}) == 16


def test_epochs_follow_on_where_the_one_before_cut_each_tape() -> None:
    index = index_of(*range(2, 11))
    spans = Spans.of(index, index.identities)
    tape, takes = Tape(spans, 4, 0), np.zeros(9)
    for epoch in range(8):
        whole = tape.stretch(epoch, 0, tape.length(epoch))
        assert whole.takes(0, tape.length(epoch)).sum() == tape.length(epoch)
        takes += np.bincount(spans.labels[whole.spans], whole.takes(0, tape.length(epoch)))
        assert np.abs(4 * takes - (epoch + 1) * index.faces).max() < 4
        piece = Tape(spans, 4, 0).stretch(epoch, 3, 9)
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
