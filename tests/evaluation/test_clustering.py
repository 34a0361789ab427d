"""Clustering: scikit-learn's HDBSCAN where every pair is in the graph, perfect when vectors are, chance when they are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score

from facerec.evaluation import clustering

PEOPLE = np.repeat([f"person {i}" for i in range(12)], 8)


def noisy(noise: float, seed: int = 0, people: int = 12, each: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(people, 32)), each, axis=0)
    return rows + noise * rng.normal(size=rows.shape)


def test_an_ideal_embedder_clusters_perfectly_though_all_distances_are_zero() -> None:
    vectors = np.repeat(np.eye(12), 8, axis=0)
    result = clustering.cluster(vectors, PEOPLE, vectors, PEOPLE, 50, 0)
    assert result["clusters"] == 12
    for value in (result["bcubed"]["f"], result["pairwise"]["f"], result["nmi"], result["adjusted_rand"]):
        assert abs(value - 1) < 1e-9
    assert result["bcubed"]["interval"] == [1.0, 1.0]


def test_a_random_embedder_is_not_better_than_chance() -> None:
    vectors = np.random.default_rng(1).normal(size=(96, 32))
    result = clustering.cluster(vectors, PEOPLE, vectors[::-1], PEOPLE, 50, 0)
    assert abs(result["adjusted_rand"]) < 0.05


def test_where_every_pair_is_in_the_graph_it_is_plain_hdbscan() -> None:
    vectors = noisy(0.5, people=8)
    parameters = {"min_cluster_size": 3, "min_samples": 2}
    oracle = HDBSCAN(**parameters, copy=True).fit(vectors).labels_
    ours = clustering.fit(vectors, parameters)
    together = np.bincount(ours)[ours] > 1
    assert (together == (oracle >= 0)).all()
    assert adjusted_rand_score(oracle[together], ours[together]) == 1.0


def test_the_graph_is_one_piece_and_keeps_people_whom_nothing_joins_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clustering, "NEIGHBOURS", 4)
    graph = clustering.graph(noisy(0.05))
    assert connected_components(graph)[0] == 1
    assert (graph != graph.T).nnz == 0
    labels = clustering.fit(noisy(0.05), clustering.DEFAULTS)
    assert adjusted_rand_score(PEOPLE, labels) == 1.0


def test_noise_is_a_cluster_of_its_own() -> None:
    vectors = np.concatenate([noisy(0.01, people=2), 50 + 100 * np.eye(3, 32)])
    labels = clustering.fit(vectors, {"min_cluster_size": 4, "min_samples": 1})
    assert np.bincount(labels)[labels[-3:]].tolist() == [1, 1, 1]


def test_parameters_are_chosen_on_the_choosers_alone() -> None:
    """They have two faces each: clusters of at least three would lose all of them."""
    pairs = np.repeat([f"chooser {i}" for i in range(30)], 2)
    result = clustering.cluster(noisy(0.3), PEOPLE, noisy(0.1, 3, 30, 2), pairs, 20, 0)
    assert result["parameters"]["min_cluster_size"] == 2
    assert result["chosen_on_faces"] == 60
    assert clustering.choose(noisy(0.1)[:8], PEOPLE[:8], 0) == (clustering.DEFAULTS, 0)
