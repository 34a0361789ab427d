"""Rejection: a threshold never judges the people who chose it, and few strangers carry no rate."""

from __future__ import annotations

import numpy as np
import pytest

from facerec.evaluation import rejection
from facerec.evaluation.rejection import Answers, best_threshold, judge
from facerec.scores import alarm_threshold


def answers(sureness: np.ndarray, right: bool | np.ndarray, people: int) -> Answers:
    names = np.array([f"p{at % people}" for at in range(len(sureness))])
    return Answers(np.asarray(sureness, float), np.broadcast_to(right, len(sureness)), names)


def test_a_clear_gap_names_everybody_and_turns_every_stranger_away() -> None:
    result = judge(answers(np.full(100, 2.0), True, 10), answers(np.full(1000, 1.0), False, 10), 0)
    assert result["area_under_roc"] == result["open_set"]["accuracy"] == 1.0
    assert result["open_set"]["threshold_of_all"] == 1.5
    found = result["detection_and_identification"]
    assert (found["rate"]["accuracy"], found["alarms"]["hits"]) == (1.0, 0)


def test_sureness_that_says_nothing_scores_chance_within_its_interval() -> None:
    rng = np.random.default_rng(0)
    known, strangers = (answers(rng.normal(size=n), side, 20) for n, side in ((2000, True), (2000, False)))
    found = judge(known, strangers, 0)["detection_and_identification"]
    for share in (found["rate"], found["alarms"]):
        assert share["interval"][0] <= 0.01 <= share["interval"][1]


def test_the_rate_is_its_closed_form() -> None:
    """Strangers even on [0, 1], known people even on [0.5, 1.5], and half of them called by another's name."""
    rng = np.random.default_rng(1)
    order = rng.permutation(4000)
    known = answers(0.5 + order / 4000, np.arange(4000) % 2 == 0, 40)
    strangers = answers(rng.permutation(4000) / 4000, False, 40)
    found = judge(known, strangers, 0)["detection_and_identification"]
    assert abs(found["rate"]["accuracy"] - 0.51 / 2) < 0.02
    assert abs(found["alarms"]["accuracy"] - 0.01) < 0.005


def test_a_threshold_chosen_on_the_scored_would_show() -> None:
    """Each person has a sureness of their own. Chosen on all, the threshold fits the strangers exactly; chosen on
    others, it meets strangers it has never seen, who raise more alarms or fewer."""
    rng = np.random.default_rng(2)
    per_person = np.tile(rng.normal(size=20), 100)
    found = judge(answers(np.full(100, 9.0), True, 10), answers(per_person, False, 20), 0)
    found = found["detection_and_identification"]
    cheating = float(np.mean(per_person > found["threshold_of_all"]))
    assert cheating == 0.0
    assert found["alarms"]["accuracy"] == 0.05  # the fold with the surest stranger knew none so sure


def test_too_few_strangers_are_refused_with_the_number_that_is_needed() -> None:
    result = judge(answers(np.ones(50), True, 5), answers(np.zeros(80), False, 4), 0)
    assert "60 faces of strangers; 500 are needed" in result["detection_and_identification"]["refused"]
    assert "rate" not in result["detection_and_identification"]
    assert "two of each" in judge(answers(np.ones(5), True, 5), answers(np.zeros(5), False, 1), 0)["refused"]


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_as_good_as_any(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known, right = rng.integers(0, 8, 30) + 2.0, rng.random(30) < 0.8
    strangers = rng.integers(0, 8, 20).astype(float)

    def value(cut: float) -> float:
        return float(np.mean(right & (known > cut)) + np.mean(strangers <= cut))

    chosen = value(best_threshold(known, right, strangers))
    assert abs(chosen - max(value(cut) for cut in np.arange(-0.5, 11, 0.5))) < 1e-9


def test_at_most_one_stranger_in_a_hundred_passes_the_alarm_threshold() -> None:
    sureness = np.random.default_rng(0).permutation(1000) / 1000
    assert np.sum(sureness > alarm_threshold(sureness, 0.01)) == 10
    assert np.sum(np.ones(1000) > alarm_threshold(np.ones(1000), 0.01)) == 0
    assert rejection.ALARM_RATE == 0.01
