"""Identification: ideal embeddings score perfectly, random ones by chance, and no photograph stands on both sides."""

from __future__ import annotations

import numpy as np

from facerec.evaluation.identification import halves, identify, near_duplicates

PEOPLE = np.repeat([f"person {i}" for i in range(8)], 12)


def different(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count)


def test_an_ideal_embedder_scores_perfectly() -> None:
    vectors = np.repeat(np.eye(8, 16, dtype=np.float32), 12, axis=0)
    sides = halves(PEOPLE, different(96), seed=0)
    result, _ = identify(vectors, PEOPLE, sides, seed=0)
    assert result["accuracy"] == result["nearest_neighbour"] == 1.0
    assert np.trace(np.array(result["confusion"])) == result["test_faces"] == len(sides.test)


def test_a_random_embedder_scores_chance_within_its_interval() -> None:
    vectors = np.random.default_rng(3).normal(size=(96, 128)).astype(np.float32)
    result, _ = identify(vectors, PEOPLE, halves(PEOPLE, different(96), seed=0), seed=0)
    low, high = result["interval"]
    assert low <= 1 / 8 <= high


def test_everybody_is_halved_and_nobody_is_on_both_sides() -> None:
    sides = halves(PEOPLE, different(96), seed=0)
    assert sorted([*sides.train, *sides.test]) == list(range(96))
    for side in (sides.train, sides.test):
        assert np.unique(PEOPLE[side], return_counts=True)[1].tolist() == [6] * 8


def test_a_planted_leak_is_kept_on_one_side() -> None:
    """Every photograph stands there twice, a bit apart: a split by rows would put copies on both sides."""
    hashes = np.repeat(different(48), 2) ^ np.tile([0, 1], 48)
    sides = halves(PEOPLE, hashes, seed=0)
    assert not set(hashes[sides.train] >> 1) & set(hashes[sides.test] >> 1)
    vectors = np.repeat(np.random.default_rng(5).normal(size=(48, 64)), 2, axis=0).astype(np.float32)
    result, _ = identify(vectors, PEOPLE, sides, seed=0)
    assert result["interval"][0] <= 1 / 8 <= result["interval"][1]


def test_someone_with_one_photograph_many_times_is_left_out() -> None:
    hashes = different(96)
    hashes[:12] = hashes[0]
    sides = halves(PEOPLE, hashes, seed=0)
    assert "person 0" not in PEOPLE[np.r_[sides.train, sides.test]]


def test_near_duplicates_are_linked_through_each_other() -> None:
    assert near_duplicates(np.array([0, 0b1111, 0b11111111, -1])) == [[0, 1, 2], [3]]
