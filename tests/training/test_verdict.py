"""The verdict: each way a run can end is told from the others by its metrics."""

from __future__ import annotations

from typing import Any

import pytest

from facerec.training.verdict import verdict


def lines(
    losses: list[float], validated: list[float] | None = None, nearest: float = 0.8
) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {"loss": loss, "active": 10, "nearest_negative": nearest, "effective_rank": 5.0} for loss in losses
    ]
    for line, score in zip(made, validated or [], strict=False):
        line["validation"] = {"nearest_neighbour": score}
    return made


RISING = [0.2, 0.4, 0.5, 0.55, 0.58, 0.6, 0.6, 0.6]
SETTLED = [1.0, 0.5, 0.3, 0.2, 0.15, 0.15, 0.15, 0.15]
FALLING = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]


@pytest.mark.parametrize(
    "metrics, word, named",
    [
        (lines(SETTLED, RISING), "learning", "0.600"),
        (lines(SETTLED), "learning", "no people"),
        (lines(FALLING, RISING[:5]), "under-trained", "--steps"),
        (lines(FALLING, RISING), "learning", "--steps hardly"),
        (lines(FALLING, RISING[:4] + [0.58, 0.56, 0.54, 0.52]), "overfitting", "run/best"),
        (lines([0.2] * 9, nearest=0.001), "collapsed", "--mining.strategy semi_hard"),
        (lines(SETTLED[:3]), "too short to tell", "--log_every"),
        ([], "too short to tell", "0 lines"),
    ],
)
def test_each_end_has_its_word_and_says_what_to_change(
    metrics: list[dict[str, Any]], word: str, named: str
) -> None:
    found = verdict(metrics, 0.2, 0.2)
    assert found.word == word
    assert named in found.why


@pytest.mark.parametrize(
    "validated, untrained, word",
    [
        ([0.26, 0.27, 0.28, 0.279], 0.324, "not learning"),  # InceptionResnetV1, margin 2, a rate of 1e-3
        ([0.245, 0.311, 0.28, 0.269], 0.324, "not learning"),  # the same, multi-similarity, 3e-3
        ([0.394, 0.53, 0.61, 0.612], 0.324, "learning"),  # the same, margin 2, 3e-4
        ([0.40, 0.60, 0.58, 0.50], 0.302, "overfitting"),
        ([0.97, 0.98, 0.98, 0.98], 0.97, "learning"),
    ],
)
def test_a_settled_loss_is_not_learning_where_the_untrained_network_was_as_good(
    validated: list[float], untrained: float, word: str
) -> None:
    metrics = lines([1.99] * 12, validated)
    metrics[0]["untrained"] = {"nearest_neighbour": untrained}
    assert verdict(metrics, 2.0, 2.0).word == word


@pytest.mark.parametrize(
    "validated, word",
    [
        ([0.45, 0.56, 0.62, 0.67, 0.71, 0.74, 0.743, 0.73], "under-trained"),  # an hour on pins and LFW
        ([0.46, 0.64, 0.61, 0.71, 0.73, 0.725, 0.726, 0.705], "learning"),  # two hours
        ([0.62, 0.61, 0.60], "under-trained"),  # too few to say
    ],
)
def test_a_loss_that_falls_wants_more_steps_only_where_validation_people_still_gain(
    validated: list[float], word: str
) -> None:
    falling = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.65, 0.6, 0.5, 0.45, 0.4, 0.35]
    found = verdict(lines(falling, validated), 2.0, 2.0)
    assert found.word == word
    assert ("--steps hardly" in found.why) == (word == "learning")


def test_hard_triplets_of_people_at_a_few_points_have_collapsed_at_more_than_the_margin() -> None:
    assert verdict(lines([2.9] * 9, nearest=0.005), 2.0, 2.0).word == "collapsed"


def test_a_run_that_has_recovered_has_not_collapsed() -> None:
    early = lines([0.2] * 6, nearest=0.001)
    assert verdict(early + lines([0.1] * 12), 0.2, 0.2).word == "learning"


def test_at_a_margin_of_2_people_well_apart_have_not_collapsed() -> None:
    """Seen: 40 steps of 4,096 drawn faces at margin 2, an effective rank of 7.5 and twelve times the untrained network's score."""
    assert verdict(lines([1.99] * 9, nearest=0.08), 2.0, 2.0).word == "learning"
    assert verdict(lines([1.99] * 9, nearest=0.001), 2.0, 2.0).word == "collapsed"
