"""Scores against closed forms and an independent library."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_curve
from sklearn.neighbors import KNeighborsClassifier

from facerec import scores
from facerec.errors import ConfigError


@pytest.mark.parametrize("hits, trials", [(0, 10), (10, 10), (7, 10), (959, 1000)])
def test_the_interval_is_scipys(hits: int, trials: int) -> None:
    theirs = binomtest(hits, trials).proportion_ci(method="wilson")
    np.testing.assert_allclose(scores.wilson_interval(hits, trials), (theirs.low, theirs.high), atol=1e-9)


def test_the_true_accept_rate_is_read_off_scikit_learns_roc() -> None:
    rng = np.random.default_rng(0)
    pairs = scores.Pairs(rng.normal(1.0, 0.4, 500), rng.normal(2.0, 0.4, 3000))
    labels = np.r_[np.ones(500), np.zeros(3000)]
    fars, tars, _ = roc_curve(labels, -np.r_[pairs.genuine, pairs.impostor], drop_intermediate=False)
    for far in (0.01, 0.05, 0.2):
        assert abs(scores.true_accept_rate(pairs, far) - tars[fars <= far].max()) < 1e-9


def test_a_rate_that_the_pairs_cannot_carry_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 10000"):
        scores.true_accept_rate(scores.Pairs(np.zeros(5), np.ones(3000)), 0.001)


def test_pairs_are_each_counted_once() -> None:
    pairs = scores.all_pairs(np.eye(6), np.array(list("aabbcc")))
    assert (len(pairs.genuine), len(pairs.impostor)) == (3, 12)
    np.testing.assert_allclose(np.r_[pairs.genuine, pairs.impostor], 2.0)


def test_the_nearest_neighbour_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    gallery, probes = rng.normal(size=(60, 8)), rng.normal(size=(40, 8))
    names, truth = rng.choice(list("abc"), 60), rng.choice(list("abc"), 40)
    oracle = KNeighborsClassifier(1).fit(gallery, names).score(probes, truth)
    assert abs(scores.nearest_neighbour_accuracy(gallery, names, probes, truth) - oracle) < 1e-9


def test_blocks_of_probes_change_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    gallery, probes = rng.normal(size=(50, 8)), rng.normal(size=(31, 8))
    names, truth = rng.choice(list("abc"), 50), rng.choice(list("abc"), 31)
    whole = scores.nearest_neighbour_accuracy(gallery, names, probes, truth)
    monkeypatch.setattr(scores, "BLOCK", 7)
    assert scores.nearest_neighbour_accuracy(gallery, names, probes, truth) == whole
