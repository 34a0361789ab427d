"""Near-duplicates: the same groups as brute force, at any number of bits, where hashes crowd too."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from facerec import phash

I64 = NDArray[np.int64]


def crowded(count: int, seed: int = 0) -> I64:
    """Hashes near one another: a few random centres, each with some bits turned."""
    random = np.random.default_rng(seed)
    hashes = random.choice(random.integers(-(2**63), 2**63 - 1, max(count // 20, 1)), count)
    for _ in range(8):
        turned = np.left_shift(1, random.integers(0, 64, count), dtype=np.int64)
        hashes ^= turned * (random.random(count) < 0.5)
    return hashes


def brute_force(hashes: I64, bits: int) -> I64:
    """Groups by the whole matrix of distances, numbered as they appear."""
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= bits
    return connected_components(near, directed=False)[1].astype(np.int64)


@pytest.mark.parametrize("bits", [0, 1, 2, 4, 7, 10])
@pytest.mark.parametrize("count", [1, 2, 60, 700])
def test_groups_are_those_of_brute_force(bits: int, count: int) -> None:
    hashes = crowded(count)
    np.testing.assert_array_equal(phash.near_duplicates(hashes, bits), brute_force(hashes, bits))


def test_links_merged_early_make_the_same_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = crowded(500, seed=1)
    monkeypatch.setattr(phash, "PENDING_LINKS", 3)
    np.testing.assert_array_equal(phash.near_duplicates(hashes, 4), brute_force(hashes, 4))


def test_near_duplicates_are_linked_through_each_other() -> None:
    assert phash.near_duplicates(np.array([-1, 0, 0b1111, 0b11111111])).tolist() == [0, 1, 1, 1]


def test_no_hashes_no_groups() -> None:
    assert phash.near_duplicates(np.array([], np.int64)).tolist() == []


def test_a_million_equal_hashes_are_one_group() -> None:
    assert phash.near_duplicates(np.zeros(10**6, np.int64)).max() == 0
