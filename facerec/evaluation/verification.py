"""One person or two? Thresholds, error rates and their intervals, as pure functions of pairs.

An interval that draws pairs anew takes pairs for independent; thousands of them share a face. So people are drawn:
a pair of one person weighs as often as the person was drawn, a pair of two the product.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.metrics import auc, roc_curve

from facerec import scores, seeding
from facerec.errors import ConfigError
from facerec.evaluation.pairs import Pairs
from facerec.scores import Floats, Ints

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""False accept rates at which true accepts are reported, where the pairs carry them."""
BINS = 80
"""Of the histogram."""
GRID = 512
"""Thresholds at which a replicate's equal error rate is looked for."""


def verify(pairs: Pairs, replicates: int, seed: int) -> dict[str, Any]:
    """Everything about these pairs; parts that they cannot carry are refused, with the reason."""
    genuine, impostor = pairs.distances[pairs.same], pairs.distances[~pairs.same]
    counts = {
        "genuine_pairs": len(genuine),
        "impostor_pairs": len(impostor),
        "people": len(np.union1d(pairs.left, pairs.right)),
        "genuine_without_face": int(np.isinf(genuine).sum()),
        "impostor_without_face": int(np.isinf(impostor).sum()),
    }
    if not len(genuine) or not len(impostor):
        return {**counts, "refused": "there must be pairs of one person and pairs of two"}
    rates = [rate for rate in np.logspace(-6, 0, 61) if len(impostor) * rate > 1 - 1e-9]
    drawn = bootstrap(pairs, [*FARS, *rates], replicates, seed)
    curve = _curve(genuine, impostor)
    return {
        **counts,
        "accuracy": fold_accuracy(pairs.distances, pairs.same, pairs.fold),
        "equal_error_rate": scores.equal_error_rate(*curve),
        "equal_error_interval": drawn[0],
        "area_under_roc": float(auc(*curve)),
        "true_accepts": [_true_accepts(genuine, impostor, far, drawn[1][at]) for at, far in enumerate(FARS)],
        "roc": [
            {"far": float(rate), "tar": _tar(curve, rate), "interval": interval}
            for rate, interval in zip(rates, drawn[1][len(FARS) :], strict=True)
        ],
        "histogram": _histogram(genuine, impostor),
        "bootstrap": {"unit": "person", "replicates": replicates, "used": drawn[2], "seed": seed},
    }


def fold_accuracy(distances: Floats, same: NDArray[np.bool_], folds: Ints) -> dict[str, Any]:
    """LFW's protocol: each fold is judged by the threshold that is best on the others; mean, standard error over folds,
    and a 95 % interval by Student's t."""
    numbers = [int(fold) for fold in np.unique(folds) if fold >= 0]
    if len(numbers) < 2:
        return {
            "refused": f"{len(numbers)} folds of people; the threshold must come from others than it is applied to"
        }
    rows = []
    for fold in numbers:
        inside, others = folds == fold, (folds >= 0) & (folds != fold)
        threshold = scores.best_threshold(distances[others], same[others])
        right = (distances[inside] < threshold) == same[inside]
        rows.append(
            {
                "fold": fold + 1,
                "pairs": int(inside.sum()),
                "threshold": finite(threshold),
                "accuracy": float(right.mean()),
            }
        )
    values = np.array([row["accuracy"] for row in rows])
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
    half = float(student.ppf(0.975, len(values) - 1)) * error
    mean = float(values.mean())
    return {
        "mean": mean,
        "standard_error": error,
        "interval": [max(mean - half, 0.0), min(mean + half, 1.0)],
        "pairs": sum(row["pairs"] for row in rows),
        "folds": rows,
    }


def bootstrap(
    pairs: Pairs, fars: list[float], replicates: int, seed: int
) -> tuple[list[float], list[list[float]], int]:
    """95 % intervals of the equal error rate and of the true accept rate at each false accept rate, and the replicates used.

    A replicate that drew no pair of one person, or none of two, has no rates and is left out.
    """
    same, order = pairs.same, np.argsort(pairs.distances, kind="stable")
    genuine, impostor = order[same[order]], order[~same[order]]
    near, far = pairs.distances[genuine], pairs.distances[impostor]
    cuts = np.unique(np.quantile(np.concatenate([near, far]), np.linspace(0, 1, GRID), method="lower"))
    near_cuts, far_cuts = (np.r_[0, np.searchsorted(side, cuts, "right")] for side in (near, far))
    person, left, right = pairs.left[genuine], pairs.left[impostor], pairs.right[impostor]
    people, random = int(max(pairs.left.max(), pairs.right.max())) + 1, seeding.generator("bootstrap", seed)
    there = np.union1d(pairs.left, pairs.right)
    errors, tars = [], []
    for _ in range(replicates):
        weights = np.zeros(people, np.int64)
        weights[there] = random.multinomial(len(there), np.full(len(there), 1 / len(there)))
        accepted = np.r_[0, np.cumsum(weights[person])]
        falsely = np.r_[0, np.cumsum(weights[left] * weights[right])]
        if not accepted[-1] or not falsely[-1]:
            continue
        errors.append(_equal_error(falsely[far_cuts] / falsely[-1], accepted[near_cuts] / accepted[-1]))
        reached = np.searchsorted(falsely[1:], np.floor(np.array(fars) * falsely[-1] + 1e-9), "right")
        limits = np.r_[far, np.inf][reached]
        tars.append(accepted[np.searchsorted(near, limits, "left")] / accepted[-1])
    if not tars:
        return [0.0, 1.0], [[0.0, 1.0]] * len(fars), 0
    by_rate = np.array(tars).T
    return (
        scores.percentile_interval(errors),
        [scores.percentile_interval(rates) for rates in by_rate],
        len(tars),
    )


def _equal_error(false_accepts: Floats, true_accepts: Floats) -> float:
    return scores.equal_error_rate(np.r_[false_accepts, 1.0], np.r_[true_accepts, 1.0])


def _curve(genuine: Floats, impostor: Floats) -> tuple[Floats, Floats]:
    """False and true accept rates at every threshold, by scikit-learn, from (0, 0); infinite distances are accepted last."""
    distances = np.concatenate([genuine, impostor])
    finite_ones = np.isfinite(distances)
    distances[~finite_ones] = 1 + distances[finite_ones].max(initial=0.0)
    labels = np.r_[np.ones(len(genuine), bool), np.zeros(len(impostor), bool)]
    false_accepts, true_accepts, _ = roc_curve(labels, -distances)
    return false_accepts, true_accepts


def _tar(curve: tuple[Floats, Floats], far: float) -> float:
    """The most true accepts at no more than so many false ones."""
    return float(curve[1][np.searchsorted(curve[0], far * (1 + 1e-9), "right") - 1])


def _true_accepts(genuine: Floats, impostor: Floats, far: float, interval: list[float]) -> dict[str, Any]:
    try:
        rate, threshold = scores.true_accept_rate(genuine, impostor, far)
    except ConfigError as error:
        return {"far": far, "tar": None, "refused": str(error)}
    return {
        "far": far,
        "tar": rate,
        "interval": interval,
        "threshold": finite(threshold),
        "false_accepts": int((impostor < threshold).sum()),
    }


def _histogram(genuine: Floats, impostor: Floats) -> dict[str, Any]:
    """Counts over even steps of squared distance; infinite ones are in no bin."""
    sides = [side[np.isfinite(side)] for side in (genuine, impostor)]
    top = max((float(side.max()) for side in sides if len(side)), default=0.0) or 1.0
    counts = [np.histogram(side, BINS, (0.0, top))[0].tolist() for side in sides]
    return {"to": top, "genuine": counts[0], "impostor": counts[1]}


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return float(value) if math.isfinite(value) else None
