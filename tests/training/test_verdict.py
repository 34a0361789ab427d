"""The verdict: each way a run can end is told from the others by its metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from facerec.training.verdict import verdict


def lines(
    losses: list[float],
    validated: Sequence[float] = (),
    nearest: float = 0.8,
    *,
    untrained: float | None = None,
    faces: int = 2000,
    people: str = "validation",
) -> list[dict[str, Any]]:
    """Metrics lines of a run. ``faces`` is the number of scored faces; ``people`` is the key of the scores."""
    made: list[dict[str, Any]] = [
        {"loss": loss, "active": 10, "nearest_negative": nearest, "effective_rank": 5.0} for loss in losses
    ]
    for line, score in zip(made, validated, strict=False):
        line[people] = {"nearest_neighbour": float(score), "faces": faces}
    if untrained is not None:
        made[0]["untrained"] = {"nearest_neighbour": untrained, "faces": faces}
    return made


RISING = [0.2, 0.4, 0.5, 0.55, 0.58, 0.6, 0.6, 0.6]
SETTLED = [1.0, 0.5, 0.3, 0.2, 0.15, 0.15, 0.15, 0.15]
SLIGHTLY = [1.99, 1.985, 1.98, 1.93, 1.92, 1.91, 1.90, 1.91]
"""As at a margin of 2."""
FALLING = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]


@pytest.mark.parametrize(
    "metrics, word, named",
    [
        (lines(SETTLED, RISING), "learning", "0.600"),
        (lines(SETTLED), "learning", "nobody is kept back"),
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
        ([0.97, 0.985, 0.985, 0.985], 0.97, "learning"),
        ([0.97, 0.98, 0.98, 0.98], 0.97, "cannot tell"),  # 20 faces of 2,000 more
    ],
)
def test_a_settled_loss_is_not_learning_where_the_untrained_network_was_as_good(
    validated: list[float], untrained: float, word: str
) -> None:
    assert verdict(lines([1.99] * 12, validated, untrained=untrained), 2.0, 2.0).word == word


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
    scores: dict[str, Any] = {"validated": [0.3, 0.5, 0.6], "untrained": 0.05}
    assert verdict(lines([1.99] * 9, nearest=0.08, **scores), 2.0, 2.0).word == "learning"
    assert verdict(lines([1.99] * 9, nearest=0.001, **scores), 2.0, 2.0).word == "collapsed"


def plateau(checkpoints: int) -> NDArray[np.float64]:
    """A true accuracy that only rises, to 0.6."""
    return 0.6 * (1 - 0.6 * np.exp(-np.arange(1, checkpoints + 1) / checkpoints * 5))


def fall(checkpoints: int, to: float) -> NDArray[np.float64]:
    """A true accuracy that reaches 0.6 at half of the run, and falls to ``to`` within a seventh of it."""
    place = np.arange(1, checkpoints + 1) / checkpoints
    rise = 0.6 * (1 - 0.6 * np.exp(-10 * place))
    return np.where(place <= 0.5, rise, 0.6 - (0.6 - to) * np.minimum(1, (place - 0.5) / 0.15))


def words(truth: NDArray[np.float64], faces: int, common: float, runs: int = 200) -> Counter[str]:
    """Verdicts of runs whose accuracies have binomial noise; ``common`` is its share that all checkpoints have alike."""
    random = np.random.default_rng(0)
    found = Counter[str]()
    for _ in range(runs):
        draws = random.standard_normal(len(truth) + 1)
        noise = np.sqrt(common) * draws[0] + np.sqrt(1 - common) * draws[1:]
        seen = np.clip(truth + np.sqrt(truth * (1 - truth) / faces) * noise, 0, 1)
        metrics = lines([1.0] * len(seen), seen.tolist(), untrained=0.2, faces=faces)
        found[verdict(metrics, 2.0, 0.2).word] += 1
    return found


@pytest.mark.parametrize("faces", [50, 120, 400, 2000])
@pytest.mark.parametrize("checkpoints", [10, 48])
@pytest.mark.parametrize("common", [0.0, 0.7])
def test_noise_of_a_plateau_is_not_overfitting(faces: int, checkpoints: int, common: float) -> None:
    """By the largest score against the last, without the number of faces, up to 92 % of these runs were."""
    for truth in (plateau(checkpoints), np.full(checkpoints, 0.6)):
        assert words(truth, faces, common)["overfitting"] <= 0.05 * 200


@pytest.mark.parametrize(("faces", "to"), [(2000, 0.5), (120, 0.4), (50, 0.2)])
@pytest.mark.parametrize("checkpoints", [10, 48])
@pytest.mark.parametrize("common", [0.0, 0.7])
def test_a_true_fall_is_overfitting(faces: int, to: float, checkpoints: int, common: float) -> None:
    assert words(fall(checkpoints, to), faces, common)["overfitting"] >= 0.95 * 200


@pytest.mark.parametrize("at_collapse", [0.2, None])
def test_of_a_loss_that_is_zero_it_is_not_said_that_it_falls(at_collapse: float | None) -> None:
    falling = [0.2, 0.1, 0.05, 0.01, 0.005, 0.002, 0.0005, 0.0001]
    found = verdict(lines(falling, RISING[:4]), at_collapse, 0.2)
    assert (found.word, "the loss is zero (0.0003)" in found.why) == ("learning", True)
    assert "--mining.margin" in found.why
    still = verdict(lines([10 * loss for loss in falling], RISING[:4]), 0.2, 0.2)
    assert (still.word, "a larger --steps" in still.why) == ("under-trained", True)


@pytest.mark.parametrize(
    ("metrics", "word"),
    [
        (lines([0.15] * 12), "cannot tell"),
        (lines([1.99] * 9), "cannot tell"),
        (lines(SETTLED), "learning"),
        (lines([0.15] * 12, [0.5] * 4, untrained=0.5, people="training_people"), "not learning"),
        (lines(SETTLED, [0.3] * 4, untrained=0.5, people="training_people"), "not learning"),
        (lines([0.15] * 12, [0.3, 0.8, 0.9, 0.9], untrained=0.5, people="training_people"), "cannot tell"),
        (lines(SLIGHTLY, [0.3, 0.8, 0.9, 0.9], untrained=0.5, people="training_people"), "learning"),
        (lines(SLIGHTLY, [1.0] * 4, untrained=1.0, people="training_people"), "cannot tell"),
        (lines(SLIGHTLY, [0.9, 0.9, 0.6, 0.4], untrained=0.3, people="training_people"), "not learning"),
        (lines([0.15] * 12, [1.0] * 4, untrained=1.0, people="training_people"), "cannot tell"),
        (lines(SETTLED, [1.0] * 4, untrained=1.0, people="training_people"), "learning"),
        (lines([0.15] * 12, [0.6] * 4, untrained=0.5, faces=45), "cannot tell"),
        (lines(SETTLED, [0.6] * 4, untrained=0.5, faces=45), "learning"),
    ],
)
def test_a_run_has_learned_if_scores_or_loss_show_it_by_more_than_noise(
    metrics: list[dict[str, Any]], word: str
) -> None:
    found = verdict(metrics, 0.2, 0.2)
    assert found.word == word
    if word != "learning":
        assert "all distances equal: 0.2000" in found.why or "best quarter" in found.why
    if "training_people" in metrics[0]:
        assert "a sample of the training people" in found.why
