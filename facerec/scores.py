"""Metrics as pure functions of arrays. Distances are squared L2: small says one person, infinite says no face was found."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics.cluster import pair_confusion_matrix

from facerec.errors import ConfigError

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

BLOCK = 1024
"""Probes compared at a time: memory is BLOCK x gallery, not probes x gallery."""
FALSE_ACCEPTS = 10
"""False accepts that a figure at a false accept rate must rest on."""
ALARMS = 5
"""False alarms that a threshold at a false-alarm rate must rest on."""


def wilson_interval(hits: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Interval of a proportion (95 % by default) that stays sensible at 0 and at 1.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if trials < 1 or not 0 <= hits <= trials:
        raise ValueError(f"{hits} hits of {trials} trials")
    share, spread = hits / trials, z * z / trials
    center = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(center - half, 0.0), min(center + half, 1.0)


def percentile_interval(values: Floats | list[float]) -> list[float]:
    """The middle 95 % of a bootstrap's replicates."""
    return [float(edge) for edge in np.quantile(values, [0.025, 0.975])]


def proportion(hits: int, trials: int) -> dict[str, float | int | list[float]]:
    """A share as reports hold it: ``accuracy``, its 95 % ``interval``, and the counts behind it."""
    return {
        "accuracy": hits / trials,
        "interval": list(wilson_interval(hits, trials)),
        "hits": hits,
        "faces": trials,
    }


def squared_distances(left: Floats, right: Floats) -> Floats:
    """Squared L2 between rows: [n, d] and [m, d] to [n, m], never below 0."""
    gram = left @ right.T
    squared: Floats = np.maximum((left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * gram, 0)
    return squared


def nearest(probes: Floats, gallery: Floats) -> tuple[Ints, Floats]:
    """Each probe's [m, d] nearest gallery row [n, d], and how far it is; ties take the first."""
    places, distances = np.empty(len(probes), np.int64), np.empty(len(probes))
    for at in range(0, len(probes), BLOCK):
        block = squared_distances(probes[at : at + BLOCK], gallery)
        places[at : at + BLOCK] = block.argmin(axis=1)
        distances[at : at + BLOCK] = block.min(axis=1)
    return places, distances


def nearest_of_others(vectors: Floats, person: Ints) -> Floats:
    """How far each row [n, d] is from the nearest row of anybody else; infinite where there is nobody else."""
    distances = np.empty(len(vectors))
    for at in range(0, len(vectors), BLOCK):
        block = squared_distances(vectors[at : at + BLOCK], vectors)
        block[person[at : at + BLOCK, None] == person] = np.inf
        distances[at : at + BLOCK] = block.min(axis=1)
    return distances


def alarm_threshold(strangers: Floats, rate: float) -> float:
    """The lowest sureness that at most this share of the strangers [n] exceed."""
    allowed = math.floor(len(strangers) * rate + 1e-9)
    return float(np.sort(strangers)[::-1][allowed])


def true_accept_rate(genuine: Floats, impostor: Floats, false_accept_rate: float) -> tuple[float, float]:
    """Share of genuine pairs below the largest threshold that at most that share of impostors is below; and the threshold.

    Raises ConfigError where fewer than ten false accepts would carry the figure.
    """
    allowed = math.floor(len(impostor) * false_accept_rate + 1e-9)
    if allowed < FALSE_ACCEPTS:
        raise ConfigError(
            f"{len(impostor)} impostor pairs carry no figure at a false accept rate of {false_accept_rate:g}; "
            f"at least {math.ceil(FALSE_ACCEPTS / false_accept_rate - 1e-9)} are needed"
        )
    if allowed >= len(impostor):
        return float(np.mean(genuine < math.inf)), math.inf
    threshold = float(np.partition(impostor, allowed)[allowed])  # the nearest impostor that must not pass
    return float(np.mean(genuine < threshold)), threshold


def equal_error_rate(false_accepts: Floats, true_accepts: Floats) -> float:
    """Where false accepts and false rejects are equal, on a ROC of rising rates from (0, 0) to (1, 1), straight between points."""
    gap = 1 - true_accepts - false_accepts
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(false_accepts[after - 1] + share * (false_accepts[after] - false_accepts[after - 1]))


def best_threshold(distances: Floats, same: NDArray[np.bool_]) -> float:
    """The threshold below which pairs are called one person that is right most often; the middle one of equally good ones."""
    order = np.argsort(distances, kind="stable")
    ascending, genuine = distances[order], same[order]
    right = np.concatenate(
        [[0], np.cumsum(np.where(genuine, 1, -1))]
    )  # of the nearest 0, 1, 2, ... pairs accepted
    edges = np.concatenate([[-math.inf], ascending, [math.inf]])
    cuts = np.flatnonzero(edges[1:] > edges[:-1])  # never between equal distances
    best = cuts[right[cuts] == right[cuts].max()]
    cut = best[len(best) // 2]
    low, high = edges[cut], edges[cut + 1]
    if not math.isfinite(low):
        return float(high) if math.isfinite(high) else 0.0
    return float((low + high) / 2)


def bcubed(truth: NDArray[np.str_], clusters: Ints) -> tuple[Floats, Floats]:
    """Each face's BCubed precision and recall [n]: the share of its cluster that is its person, and of its person in its cluster.

    Amigo et al., "A comparison of extrinsic clustering evaluation metrics based on formal constraints", 2009.
    """
    _, person = np.unique(truth, return_inverse=True)
    _, cluster = np.unique(clusters, return_inverse=True)
    cells = person * (cluster.max() + 1) + cluster
    _, cell, together = np.unique(cells, return_inverse=True, return_counts=True)
    shared = together[cell]
    return shared / np.bincount(cluster)[cluster], shared / np.bincount(person)[person]


def harmonic(precision: float, recall: float) -> float:
    """The F-score of the two; 0 where both are."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def pairwise(truth: NDArray[np.str_], clusters: Ints) -> tuple[float, float]:
    """Precision and recall of the statement "one person" over all pairs that are in one cluster; 0 where nothing is paired."""
    (_, false_pairs), (missed, true_pairs) = pair_confusion_matrix(truth, clusters).tolist()
    return true_pairs / max(true_pairs + false_pairs, 1), true_pairs / max(true_pairs + missed, 1)
