"""The schedule is a pure function, shows everyone their due, and cuts the same micro-batches for any workers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from facerec import schema
from facerec.errors import ConfigError
from facerec.training.index import FaceIndex
from facerec.training.schedule import BatchConfig, BatchShape, Rounds, Schedule, trainable


def index_of(*counts: int) -> FaceIndex:
    """One identity a count, its faces in spans of at most three."""
    spans = [
        {
            "identity": f"p{person:02d}",
            "file": "f",
            "row_group": 0,
            "first_row": 0,
            "rows": min(3, count - at),
        }
        for person, count in enumerate(counts)
        for at in range(0, count, 3)
    ]
    order = np.random.default_rng(0).permutation(len(spans))
    return FaceIndex(pa.Table.from_pylist([spans[i] for i in order], schema.INDEX))


def schedule_of(*counts: int, p: int = 4, k: int = 4, seed: int = 0) -> tuple[Schedule, FaceIndex]:
    index = index_of(*counts)
    people = trainable(index, index.identities)
    return Schedule(index, people, BatchShape(p=p, k=k, micro_batch=p), seed), index


def test_any_step_can_be_asked_first_and_gives_the_same_batch() -> None:
    forwards, _ = schedule_of(*range(2, 11))
    batches = [forwards.batch(step) for step in range(30)]
    for step in (29, 11, 0, 17, 16):
        for again in (schedule_of(*range(2, 11))[0], forwards):
            batch = again.batch(step)
            assert np.array_equal(batch.faces, batches[step].faces)
            assert np.array_equal(batch.labels, batches[step].labels)


def test_another_seed_gives_other_batches() -> None:
    one, other = schedule_of(*[6] * 9)[0], schedule_of(*[6] * 9, seed=1)[0]
    assert not np.array_equal(one.batch(0).faces, other.batch(0).faces)


def test_a_batch_is_p_people_of_k_distinct_faces_and_rows_are_k_major() -> None:
    schedule, index = schedule_of(*range(4, 13))
    for step in range(40):
        batch = schedule.batch(step)
        assert len(set(batch.labels.tolist())) == 4
        assert np.array_equal(batch.labels, np.tile(batch.labels[:4], 4))
        assert len(set(batch.faces.tolist())) == 16
        for label, faces in zip(batch.labels[:4], batch.faces.reshape(4, 4).T, strict=True):
            assert set(faces.tolist()) <= set(index.ordinals(f"p{label:02d}").tolist())


def test_after_whole_epochs_every_person_and_face_came_equally_often() -> None:
    schedule, index = schedule_of(*[7] * 9)
    batches = [schedule.batch(step) for step in range(9 * 7)]  # 28 epochs, so 16 rounds of 7 faces
    assert set(Counter(label for b in batches for label in b.labels[:4].tolist()).values()) == {28}
    faces = Counter(face for b in batches for face in b.faces.tolist())
    assert len(faces) == 63
    assert set(faces.values()) == {16}
    assert index.count("p00") == 7


def test_people_of_few_faces_repeat_them_and_those_of_one_are_left_out() -> None:
    schedule, index = schedule_of(1, 2, 3, 2, 3)
    assert trainable(index, index.identities) == ["p01", "p02", "p03", "p04"]
    faces = schedule.batch(0).faces
    assert not set(index.ordinals("p00").tolist()) & set(faces.tolist())
    assert len(set(faces.tolist())) == 10


@pytest.mark.parametrize("count, size", [(5, 3), (7, 7), (4, 3), (16, 5), (2, 4)])
def test_takes_hold_no_number_twice_and_rounds_hold_all(count: int, size: int) -> None:
    rounds = Rounds(count, size, "key")
    takes = [rounds.take(number) for number in range(4 * count)]
    assert all(len(set(take.tolist())) == min(count, size) for take in takes)
    if count >= size:
        flat = np.concatenate(takes).reshape(-1, count)
        assert all(sorted(row.tolist()) == list(range(count)) for row in flat)


def test_the_index_finds_every_face_where_it_lies() -> None:
    spans = [("b", 0, 4, 3), ("a", 1, 0, 2), ("b", 1, 2, 1)]
    names = ("identity", "row_group", "first_row", "rows")
    rows = [dict(zip(names, span, strict=True)) | {"file": "f"} for span in spans]
    index = FaceIndex(pa.Table.from_pylist(rows, schema.INDEX))
    assert index.ordinals("b").tolist() == [0, 1, 2, 5]
    assert [index.locate(o) for o in range(6)] == [("f", 0, r) for r in (4, 5, 6)] + [
        ("f", 1, r) for r in (0, 1, 2)
    ]


def test_shares_are_contiguous_and_some_own_one_more() -> None:
    shape = BatchShape(p=14, k=4, micro_batch=8)
    assert [list(shape.share(3, rank)) for rank in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]
    assert shape.sizes(3) == [24, 16, 16]


def test_more_workers_than_micro_batches_are_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"5 workers but 4 micro-batches \(p=8, k=4, micro_batch=8\)"):
        BatchShape(p=8, k=4, micro_batch=8).share(5, 0)


@pytest.mark.parametrize("people, p", [(100, 64), (64, 64), (63, 56), (9, 8)])
def test_p_auto_is_the_largest_that_fills_the_micro_batches(people: int, p: int) -> None:
    assert BatchConfig(micro_batch=32).fit(people) == BatchShape(p, 4, 32)


@pytest.mark.parametrize("people, p, micro_batch", [(100, 64, 32), (37, 36, 18), (30, 30, 30), (5, 5, 10)])
def test_everything_auto_takes_nearly_everyone_in_micro_batches_of_a_fair_size(
    people: int, p: int, micro_batch: int
) -> None:
    assert BatchConfig().fit(people) == BatchShape(p, 4, micro_batch)
    assert BatchConfig(p_max=16, k=6).fit(30) == BatchShape(16, 6, 24)


@pytest.mark.parametrize("k", [2, 3, 4, 5, 7, 40])
def test_everything_auto_always_cuts_the_batch_for_two_workers(k: int) -> None:
    for people in range(2, 90):
        shape = BatchConfig(k=k).fit(people)
        assert shape.faces % shape.micro_batch == 0
        assert 2 <= shape.micro_batch <= 32
        assert shape.groups >= 2
        assert shape.p >= min(people, 64) - 1


def test_too_few_people_for_the_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"7 training identities.*--batch\.micro_batch auto or 28"):
        BatchConfig(micro_batch=32).fit(7)
    with pytest.raises(ConfigError, match=r"p is 16 but 7 .*--batch\.p"):
        BatchConfig(p=16).fit(7)
    with pytest.raises(ConfigError, match="1 training identities have 2 faces or more; at least 2"):
        BatchConfig().fit(1)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"k": 1}, "k is 1"),
        ({"p": 1}, "p is 1"),
        ({"micro_batch": 1}, "micro_batch is 1"),
        ({"p": 9, "k": 4, "micro_batch": 32}, "batch 36 is not divisible by micro_batch 32"),
    ],
)
def test_batches_that_cannot_be_are_refused_with_the_numbers(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BatchConfig(**wrong)  # type: ignore[arg-type]
