"""Who is it: an SVM over vectors of people the network never saw, fitted on half their photographs.

Near-duplicate photographs stay on one side, and C is chosen inside the training half: either leak would flatter
any network, the untrained one most of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import skops.io
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from facerec import scores, seeding

NEAR_DUPLICATE_BITS = 4
"""Photographs of one person whose perceptual hashes differ in so few bits are taken for one photograph."""
KERNEL_LIMIT = 100
"""SVC is one-vs-one: above this many people the number of classifiers runs away, and a linear one-vs-rest does."""
GRID = {"C": [0.1, 1.0, 10.0, 100.0]}
TRUSTED_TYPES: list[str] = []
"""What a saved SVM may hold beyond skops' own defaults: nothing. Never taken from the file."""


@dataclass(frozen=True)
class Halves:
    """Row numbers of the two sides; every person stands on both."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def halves(identities: NDArray[np.str_], hashes: NDArray[np.int64], seed: int) -> Halves:
    """Half of each person's photographs on each side, groups of near-duplicates whole.

    People whose photographs are all one group cannot be scored and are on neither side.
    """
    sides: dict[bool, list[int]] = {True: [], False: []}
    for name in sorted(set(identities.tolist())):
        rows = np.flatnonzero(identities == name)
        groups = near_duplicates(hashes[rows])
        if len(groups) < 2:
            continue
        order = seeding.generator("halves", seed, name).permutation(len(groups))
        taken = 0
        for rank, group in enumerate(order):
            left = taken < len(rows) / 2 and rank < len(groups) - 1
            sides[left] += rows[groups[group]].tolist()
            taken += len(groups[group]) if left else 0
    return Halves(np.array(sorted(sides[True]), np.int64), np.array(sorted(sides[False]), np.int64))


def near_duplicates(hashes: NDArray[np.int64]) -> list[list[int]]:
    """Groups of positions whose hashes are linked by small differences (single linkage)."""
    bits = np.unpackbits(hashes.astype(np.int64).view(np.uint8).reshape(len(hashes), 8), axis=1).astype(
        np.float32
    )
    near = scores.squared_distances(bits, bits) <= NEAR_DUPLICATE_BITS
    groups: list[list[int]] = []
    free = set(range(len(hashes)))
    while free:
        group, front = [], [min(free)]
        free.discard(front[0])
        while front:
            at = front.pop()
            group.append(at)
            linked = [int(other) for other in np.flatnonzero(near[at]) if int(other) in free]
            free.difference_update(linked)
            front += linked
        groups.append(sorted(group))
    return groups


def identify(
    vectors: NDArray[np.float32], identities: NDArray[np.str_], sides: Halves, seed: int
) -> tuple[dict[str, Any], Any]:
    """Fit on one half, score the other: the numbers, and the fitted scikit-learn pipeline."""
    model = _fit(vectors[sides.train], identities[sides.train], seed)
    truth, said = identities[sides.test], model.predict(vectors[sides.test])
    names = sorted(set(identities[sides.train].tolist()))
    position = {name: at for at, name in enumerate(names)}
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, ([position[name] for name in truth], [position[name] for name in said]), 1)
    hits = int((truth == said).sum())
    return {
        "accuracy": hits / len(truth),
        "interval": list(scores.wilson_interval(hits, len(truth))),
        "hits": hits,
        "train_faces": len(sides.train),
        "test_faces": len(sides.test),
        "people": names,
        "confusion": confusion.tolist(),
        "c": float(model[-1].C),
        "nearest_neighbour": scores.nearest_neighbour_accuracy(
            vectors[sides.train], identities[sides.train], vectors[sides.test], truth
        ),
    }, model


def load_svm(data: bytes) -> Any:
    """An SVM as evaluation saved it; refuses bytes that hold any other type."""
    return skops.io.loads(data, trusted=TRUSTED_TYPES)


def _fit(vectors: NDArray[np.float32], identities: NDArray[np.str_], seed: int) -> Any:
    """StandardScaler and SVM, C by cross-validation within these rows where everyone has enough of them."""
    people, counts = np.unique(identities, return_counts=True)
    svm = SVC() if len(people) <= KERNEL_LIMIT else LinearSVC(random_state=seed)
    pipeline = make_pipeline(StandardScaler(), svm)
    folds = min(3, int(counts.min()))
    if folds < 2:
        return pipeline.fit(vectors, identities)
    grid = {f"{pipeline.steps[-1][0]}__{name}": values for name, values in GRID.items()}
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return GridSearchCV(pipeline, grid, cv=split).fit(vectors, identities).best_estimator_
