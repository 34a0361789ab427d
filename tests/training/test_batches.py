"""A batch is cut the same for any number of workers, and what cannot be cut is refused with the numbers."""

from __future__ import annotations

import pytest

from facerec.errors import ConfigError
from facerec.training.batches import BatchConfig, BatchShape


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
