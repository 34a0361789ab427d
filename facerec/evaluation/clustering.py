"""Whose faces belong together, without any name: HDBSCAN over the vectors, scored against the names.

Its parameters are chosen on people who are not clustered. It works on the graph of each face's nearest others, which
takes memory and time in proportion to the faces; up to NEIGHBOURS faces that is every pair.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import ParameterGrid
from sklearn.neighbors import kneighbors_graph

from facerec import scores, seeding
from facerec.evaluation.gallery import whole_people
from facerec.scores import Floats, Ints

NEIGHBOURS = 64
"""Of each face, in the graph."""
CHOOSING_FACES = 4000
"""Faces that the parameters are chosen on, at most: whole people, seeded."""
GRID = {
    "min_cluster_size": [2, 3, 5, 10],
    "min_samples": [1, 2, 4],
    "cluster_selection_method": ["eom", "leaf"],
}
DEFAULTS = {"min_cluster_size": 3, "min_samples": 1, "cluster_selection_method": "eom"}
NEVER_ZERO = 1e-6
"""Distance of equal vectors: a sparse graph takes a zero for no edge."""

Strings = NDArray[np.str_]


def cluster(
    vectors: Floats,
    identities: Strings,
    chooser_vectors: Floats,
    choosers: Strings,
    replicates: int,
    seed: int,
) -> dict[str, Any]:
    """Choose parameters on the choosers [m, d], cluster the faces [n, d]: the report's numbers."""
    if len(identities) < 2:
        return {"refused": f"{len(identities)} faces; two are needed to be together"}
    parameters, chosen_on = choose(chooser_vectors, choosers, seed)
    return score(fit(vectors, parameters), identities, replicates, seed) | {
        "parameters": parameters,
        "chosen_on_faces": chosen_on,
    }


def choose(vectors: Floats, identities: Strings, seed: int) -> tuple[dict[str, Any], int]:
    """The parameters of the best BCubed F, the first of equals, and how many faces chose; DEFAULTS below two people."""
    keep = whole_people(identities, CHOOSING_FACES, seeding.generator("choosing", seed))
    vectors, identities = vectors[keep], identities[keep]
    if len(set(identities.tolist())) < 2:
        return DEFAULTS, 0
    distances = graph(vectors)
    candidates = [
        dict(each)
        for each in ParameterGrid(GRID)
        if each["min_samples"] < len(keep) and each["min_cluster_size"] < len(keep)
    ]
    values = [_f(*scores.bcubed(identities, labels_of(distances, each))) for each in candidates]
    return candidates[int(np.argmax(values))], len(keep)


def fit(vectors: Floats, parameters: dict[str, Any]) -> Ints:
    """Each face's cluster [n]; a face that HDBSCAN calls noise is one of its own."""
    most = len(vectors)
    bounded = parameters | {
        "min_samples": min(parameters["min_samples"], most - 1),
        "min_cluster_size": max(2, min(parameters["min_cluster_size"], most)),
    }
    return labels_of(graph(vectors), bounded)


def labels_of(distances: csr_array, parameters: dict[str, Any]) -> Ints:
    """The same from the graph."""
    labels: Ints = (
        HDBSCAN(metric="precomputed", copy=True, **parameters).fit(distances).labels_.astype(np.int64)
    )
    noise = labels < 0
    labels[noise] = labels.max() + 1 + np.arange(noise.sum())
    return labels


def graph(vectors: Floats) -> csr_array:
    """L2 distances to the nearest others [n, n], symmetric, in one piece: parts that nothing joins are joined at the largest one."""
    nearest = kneighbors_graph(vectors, min(NEIGHBOURS, len(vectors) - 1), mode="distance")
    nearest.data = np.maximum(nearest.data, NEVER_ZERO)
    joined = nearest.maximum(nearest.T)
    parts, labels = connected_components(joined, directed=False)
    if parts > 1:
        _, first = np.unique(labels, return_index=True)
        far = np.full(parts - 1, 2 * joined.max())
        bridges = coo_array((far, (first[:-1], first[1:])), shape=joined.shape).tocsr()
        joined = joined + bridges + bridges.T
    return csr_array(joined)


def score(labels: Ints, identities: Strings, replicates: int, seed: int) -> dict[str, Any]:
    """BCubed and pairwise F, NMI, adjusted Rand (0 by chance); the interval draws people anew."""
    precision, recall = scores.bcubed(identities, labels)
    sizes = np.unique(labels, return_counts=True)[1]
    pair_precision, pair_recall = scores.pairwise(identities, labels)
    return {
        "faces": len(labels),
        "people": len(set(identities.tolist())),
        "clusters": int((sizes > 1).sum()),
        "faces_alone": int((sizes == 1).sum()),
        "bcubed": {
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "f": _f(precision, recall),
            "interval": _interval(precision, recall, identities, replicates, seed),
        },
        "pairwise": {
            "precision": pair_precision,
            "recall": pair_recall,
            "f": scores.harmonic(pair_precision, pair_recall),
        },
        "nmi": float(normalized_mutual_info_score(identities, labels)),
        "adjusted_rand": float(adjusted_rand_score(identities, labels)),
    }


def _f(precision: Floats, recall: Floats) -> float:
    return scores.harmonic(float(precision.mean()), float(recall.mean()))


def _interval(
    precision: Floats, recall: Floats, identities: Strings, replicates: int, seed: int
) -> list[float]:
    names, person = np.unique(identities, return_inverse=True)
    faces, per_p, per_r = (np.bincount(person, weights) for weights in (None, precision, recall))
    drawn = seeding.generator("clustering", seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), replicates
    )
    values = [scores.harmonic(float(w @ per_p / (w @ faces)), float(w @ per_r / (w @ faces))) for w in drawn]
    return scores.percentile_interval(values)
