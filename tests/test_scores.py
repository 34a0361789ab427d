"""Scores against closed forms and an independent library."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binomtest
from sklearn.metrics import roc_curve
from sklearn.neighbors import NearestNeighbors

from facerec import scores
from facerec.errors import ConfigError


@pytest.mark.parametrize("hits, trials", [(0, 10), (10, 10), (7, 10), (959, 1000)])
def test_the_interval_is_scipys(hits: int, trials: int) -> None:
    theirs = binomtest(hits, trials).proportion_ci(method="wilson")
    np.testing.assert_allclose(scores.wilson_interval(hits, trials), (theirs.low, theirs.high), atol=1e-9)


def test_the_true_accept_rate_is_read_off_scikit_learns_roc() -> None:
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(1.0, 0.4, 500), rng.normal(2.0, 0.4, 3000)
    labels = np.r_[np.ones(500), np.zeros(3000)]
    fars, tars, _ = roc_curve(labels, -np.r_[genuine, impostor], drop_intermediate=False)
    for far in (0.01, 0.05, 0.2):
        rate, threshold = scores.true_accept_rate(genuine, impostor, far)
        assert abs(rate - tars[fars <= far].max()) < 1e-9
        assert np.mean(impostor < threshold) <= far < np.mean(impostor <= threshold) + 1 / 3000


def test_impostors_that_are_equally_near_pass_together_or_not_at_all() -> None:
    impostor = np.r_[np.full(50, 1.0), np.full(950, 2.0)]
    assert scores.true_accept_rate(np.array([0.5, 1.0, 1.5]), impostor, 0.02) == (1 / 3, 1.0)
    assert scores.true_accept_rate(np.array([0.5, 1.0, 1.5]), impostor, 0.05) == (1.0, 2.0)


def test_a_rate_that_the_pairs_cannot_carry_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 10000"):
        scores.true_accept_rate(np.zeros(5), np.ones(3000), 0.001)


def test_the_equal_error_rate_is_where_the_roc_crosses_the_diagonal() -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(400) < 0.4
    fars, tars, _ = roc_curve(labels, labels + rng.normal(0, 1, 400))
    oracle = brentq(lambda far: 1 - far - np.interp(far, fars, tars), 0, 1, xtol=1e-12)
    assert abs(scores.equal_error_rate(fars, tars) - oracle) < 1e-9
    assert scores.equal_error_rate(np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])) == 0.0
    assert scores.equal_error_rate(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.5


def test_the_best_threshold_is_right_as_often_as_any() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        distances = np.r_[rng.integers(0, 6, 12) / 2, np.inf]
        same = rng.random(13) < 0.5
        right = [np.mean((distances < cut) == same) for cut in np.arange(-0.25, 4, 0.5)]
        assert np.mean((distances < scores.best_threshold(distances, same)) == same) == max(right)


def test_a_threshold_between_two_groups_lies_in_the_middle() -> None:
    assert scores.best_threshold(np.array([0.0, 0.0, 2.0]), np.array([True, True, False])) == 1.0


def test_the_nearest_neighbour_is_scikit_learns_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    gallery, probes = rng.normal(size=(60, 8)), rng.normal(size=(40, 8))
    apart, theirs = NearestNeighbors(n_neighbors=1).fit(gallery).kneighbors(probes)
    for block in (1024, 7):
        monkeypatch.setattr(scores, "BLOCK", block)
        places, distances = scores.nearest(probes, gallery)
        assert places.tolist() == theirs[:, 0].tolist()
        np.testing.assert_allclose(distances, apart[:, 0] ** 2, atol=1e-9)


def test_bcubed_is_its_definition_face_by_face() -> None:
    rng = np.random.default_rng(3)
    truth, clusters = rng.choice(list("abcd"), 40), rng.integers(0, 6, 40)
    precision, recall = scores.bcubed(truth, clusters)
    for face in range(40):
        mates, own = clusters == clusters[face], truth == truth[face]
        assert math.isclose(precision[face], (mates & own).sum() / mates.sum(), abs_tol=1e-9)
        assert math.isclose(recall[face], (mates & own).sum() / own.sum(), abs_tol=1e-9)


def test_pairwise_precision_and_recall_count_pairs() -> None:
    rng = np.random.default_rng(4)
    truth, clusters = rng.choice(list("abc"), 30), rng.integers(0, 5, 30)
    pairs = list(itertools.combinations(range(30), 2))
    said = {(i, j) for i, j in pairs if clusters[i] == clusters[j]}
    true = {(i, j) for i, j in pairs if truth[i] == truth[j]}
    precision, recall = scores.pairwise(truth, clusters)
    assert math.isclose(precision, len(said & true) / len(said), abs_tol=1e-9)
    assert math.isclose(recall, len(said & true) / len(true), abs_tol=1e-9)
    assert scores.pairwise(truth, np.arange(30)) == (0.0, 0.0)
