"""Is it anybody at all? Strangers who were never enrolled must be turned away, and the enrolled named rightly.

People are dealt to folds; a fold is judged by the threshold that the others chose. So no threshold is judged by the
people who chose it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from facerec import scores, seeding
from facerec.scores import Floats

FOLDS = 5
ALARM_RATE = 0.01


@dataclass(frozen=True)
class Answers:
    """What a recogniser says of faces: how sure it is [n], whether the name is right [n], and whose they are [n]."""

    sureness: Floats
    right: NDArray[np.bool_]
    identities: NDArray[np.str_]


def judge(known: Answers, strangers: Answers, seed: int) -> dict[str, Any]:
    """Accuracy with rejection, and detection and identification at 1 % false alarms (Phillips, Grother
    and Micheals, "Evaluation Methods in Face Recognition", 2005), pooled over the folds."""
    people = [len(set(side.identities.tolist())) for side in (known, strangers)]
    folds = min(FOLDS, *people)
    if folds < 2:
        return {
            "refused": f"{people[0]} known people and {people[1]} strangers; two of each are needed, as thresholds come from others"
        }
    deal = [_deal(side.identities, folds, seed) for side in (known, strangers)]
    return {
        "area_under_roc": float(
            roc_auc_score(
                np.r_[np.ones(len(known.right)), np.zeros(len(strangers.right))],
                np.r_[known.sureness, strangers.sureness],
            )
        ),
        "open_set": _open_set(known, strangers, deal, folds),
        "detection_and_identification": _at_alarm_rate(known, strangers, deal, folds),
    }


def _open_set(
    known: Answers, strangers: Answers, deal: list[NDArray[np.int64]], folds: int
) -> dict[str, Any]:
    """The threshold is the one of best mean of both shares: known people named, strangers turned away."""
    named = turned = 0
    thresholds = []
    for fold in range(folds):
        ours, theirs = deal[0] != fold, deal[1] != fold
        threshold = best_threshold(known.sureness[ours], known.right[ours], strangers.sureness[theirs])
        named += int((known.right & (known.sureness > threshold))[~ours].sum())
        turned += int((strangers.sureness <= threshold)[~theirs].sum())
        thresholds.append(threshold)
    return {
        **scores.proportion(named + turned, len(known.right) + len(strangers.right)),
        "balanced_accuracy": (named / len(known.right) + turned / len(strangers.right)) / 2,
        "known_named": scores.proportion(named, len(known.right)),
        "strangers_rejected": scores.proportion(turned, len(strangers.right)),
        "thresholds": thresholds,
        "threshold_of_all": best_threshold(known.sureness, known.right, strangers.sureness),
    }


def _at_alarm_rate(
    known: Answers, strangers: Answers, deal: list[NDArray[np.int64]], folds: int
) -> dict[str, Any]:
    fewest = len(strangers.right) - int(np.bincount(deal[1]).max())
    about = {
        "alarm_rate": ALARM_RATE,
        "stranger_faces": len(strangers.right),
        "stranger_faces_a_threshold": fewest,
    }
    if fewest * ALARM_RATE < scores.ALARMS:
        needed = math.ceil(scores.ALARMS / ALARM_RATE)
        return {
            **about,
            "refused": f"thresholds would rest on {fewest} faces of strangers; {needed} are needed for {scores.ALARMS} false alarms at {ALARM_RATE:.0%}",
        }
    identified = alarms = 0
    thresholds = []
    for fold in range(folds):
        ours, theirs = deal[0] == fold, deal[1] == fold
        threshold = scores.alarm_threshold(strangers.sureness[~theirs], ALARM_RATE)
        identified += int((known.right & (known.sureness > threshold))[ours].sum())
        alarms += int((strangers.sureness > threshold)[theirs].sum())
        thresholds.append(threshold)
    return {
        **about,
        "rate": scores.proportion(identified, len(known.right)),
        "alarms": scores.proportion(alarms, len(strangers.right)),
        "thresholds": thresholds,
        "threshold_of_all": scores.alarm_threshold(strangers.sureness, ALARM_RATE),
    }


def best_threshold(known: Floats, right: NDArray[np.bool_], strangers: Floats) -> float:
    """The sureness [n], [m] above which a name is given that maximises the mean of known people named and strangers turned
    away; in the middle of the gap above the last who is turned away."""
    values = np.concatenate([known, strangers])
    gains = np.concatenate([right / -max(len(right), 1), np.full(len(strangers), 1 / len(strangers))])
    order = np.argsort(values, kind="stable")
    ascending, gained = values[order], np.cumsum(gains[order])
    last = np.r_[ascending[1:] > ascending[:-1], True]
    at = int(np.argmax(np.where(last, gained, -np.inf)))
    if gained[at] < 0:  # to turn nobody away is best
        return float(np.nextafter(ascending[0], -np.inf))
    return float((ascending[at] + ascending[min(at + 1, len(ascending) - 1)]) / 2)


def _deal(identities: NDArray[np.str_], folds: int, seed: int) -> NDArray[np.int64]:
    names, person = np.unique(identities, return_inverse=True)
    return np.asarray(
        (seeding.generator("rejection", seed).permutation(len(names)) % folds)[person], np.int64
    )
