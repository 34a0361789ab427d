"""Numbers that several rooms share, as pure functions of arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facerec.errors import ConfigError

Floats = NDArray[np.floating]

BLOCK = 1024
"""Probes compared at a time: memory is BLOCK x gallery, not probes x gallery."""


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


@dataclass(frozen=True)
class Pairs:
    """Squared distances of all pairs of a set."""

    genuine: Floats
    """Of pairs of one person."""
    impostor: Floats
    """Of pairs of two people."""


def all_pairs(embeddings: Floats, identities: NDArray[np.str_]) -> Pairs:
    """Every pair of embeddings [n, d] once, by squared L2."""
    distances = squared_distances(embeddings, embeddings)
    upper = np.triu_indices(len(embeddings), k=1)
    same = identities[upper[0]] == identities[upper[1]]
    return Pairs(distances[upper][same], distances[upper][~same])


def squared_distances(left: Floats, right: Floats) -> Floats:
    """Squared L2 between rows: [n, d] and [m, d] to [n, m], never below 0."""
    gram = left @ right.T
    squared: Floats = np.maximum((left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * gram, 0)
    return squared


def true_accept_rate(pairs: Pairs, false_accept_rate: float) -> float:
    """Share of genuine pairs accepted at the largest threshold that accepts at most that share of impostors.

    Raises ConfigError where fewer than ten false accepts would carry the figure.
    """
    allowed = math.floor(len(pairs.impostor) * false_accept_rate + 1e-9)
    if allowed < 10:
        raise ConfigError(
            f"{len(pairs.impostor)} impostor pairs carry no figure at a false accept rate of {false_accept_rate}; "
            f"at least {math.ceil(10 / false_accept_rate)} are needed"
        )
    if allowed >= len(pairs.impostor):
        return 1.0
    threshold = np.partition(pairs.impostor, allowed)[allowed]  # the nearest impostor that must not pass
    return float(np.mean(pairs.genuine < threshold))


def nearest_neighbour_accuracy(
    gallery: Floats, gallery_names: NDArray[np.str_], probes: Floats, probe_names: NDArray[np.str_]
) -> float:
    """Share of probes [m, d] whose nearest gallery row [n, d] is of the same person; ties take the first."""
    blocks = range(0, len(probes), BLOCK)
    nearest = np.concatenate(
        [squared_distances(probes[at : at + BLOCK], gallery).argmin(axis=1) for at in blocks]
    )
    return float(np.mean(gallery_names[nearest] == probe_names))
