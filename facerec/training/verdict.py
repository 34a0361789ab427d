"""What became of a run, in a word: from its loss, and from the people on whom its checkpoints were scored."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Any, Literal

from facerec.training.measures import COLLAPSE_LINES, CollapseWatch

Word = Literal[
    "learning",
    "not learning",
    "overfitting",
    "collapsed",
    "under-trained",
    "too short to tell",
    "cannot tell",
]

LEAST_LINES = 8
"""Lines of metrics, below which two quarters of them mean nothing."""
STILL_FALLING = 0.95
"""Loss of the last quarter over the quarter before, below which more steps would have helped."""
FELL = 0.9
"""Loss of the last quarter over that of the first lines, below which the run has learned something."""
ZERO = 0.01
"""Share of the loss at equal distances below which nothing is left of the loss."""
LOST = 0.03
"""Fall of the nearest-neighbour accuracy, from the best quarter of the checkpoints to the last one, that matters."""
NOISE = 2.5
"""Standard errors: a smaller difference of two accuracies may be chance."""
LEARNT = 0.95
"""Error of the best checkpoint over that of the untrained network, above which the run has taught nothing."""
GO_ON = "continue this run by the same command with a larger --steps"


@dataclass(frozen=True)
class Verdict:
    """A word, and a sentence with the numbers behind it and what to change."""

    word: Word
    why: str

    def __str__(self) -> str:
        return f"{self.word}: {self.why}"


@dataclass(frozen=True)
class Scored:
    """Nearest-neighbour accuracies of the checkpoints, on one group of people."""

    kept_back: bool
    """Whether they are validation people. Otherwise they are some of the people that the run trains on."""
    faces: int
    """How many faces were scored; 0 if the metrics do not say it."""
    untrained: float | None
    """Of the network before the first step."""
    checkpoints: list[float]

    @property
    def who(self) -> str:
        """What a sentence calls them."""
        return "validation people" if self.kept_back else "a sample of the training people"

    def noise(self, *shares: tuple[float, int]) -> float:
        """How far apart two means may be by chance, each given as (accuracy, checkpoints in the mean).

        Binomial, as if every checkpoint were scored on other faces. The same faces make the true noise smaller.
        """
        variance = sum(accuracy * (1 - accuracy) / count for accuracy, count in shares)
        return NOISE * math.sqrt(variance / self.faces) if self.faces else math.inf


def verdict(lines: list[dict[str, Any]], loss_at_collapse: float | None, margin: float) -> Verdict:
    """The verdict on a finished run's metrics, in their order; the other arguments are those of ``CollapseWatch``."""
    watch = CollapseWatch(loss_at_collapse, margin)
    looks = [watch.warning(line) for line in lines]
    late = [said for said in looks[-max(COLLAPSE_LINES, len(looks) // 4) :] if said]
    if late:
        return Verdict("collapsed", late[-1].partition("collapsed: ")[2])
    if len(lines) < LEAST_LINES:
        return Verdict(
            "too short to tell", f"{len(lines)} lines of metrics; {LEAST_LINES} are needed (--log_every)"
        )
    scored = _scored(lines)
    return (
        _doubt(lines, scored, loss_at_collapse)
        or (_fallen(scored) if scored else None)
        or _by_loss(lines, scored, loss_at_collapse)
    )


def _scored(lines: list[dict[str, Any]]) -> Scored | None:
    for key in ("validation", "training_people"):
        if found := [line[key] for line in lines if key in line]:
            untrained = lines[0].get("untrained", {}).get("nearest_neighbour")
            accuracies = [scores["nearest_neighbour"] for scores in found]
            return Scored(key == "validation", found[-1].get("faces", 0), untrained, accuracies)
    return None


def _doubt(lines: list[dict[str, Any]], scored: Scored | None, at_collapse: float | None) -> Verdict | None:
    """The verdict on a run that has not learned, or that gives no evidence that it has; None for all other runs.

    A large fall of the loss shows it, and so do scores that exceed the untrained network's by more than noise. The scores of
    training people count only if the loss has fallen too: on few faces, BatchNorm's statistics alone change them.
    """
    start, last = _start(lines), _quarter(lines, 3)
    seen = f"the loss of the last quarter is {last:.4f} and was {start:.4f} in the first lines"
    if at_collapse:
        seen += f" (all distances equal: {at_collapse:.4f})"
    if scored and scored.untrained is not None:
        best, before = _best(scored.checkpoints), scored.untrained
        noise = scored.noise((best, 1), (before, 1))
        taught = 1 - best <= LEARNT * (1 - before)
        if taught and best - before > noise and (scored.kept_back or _has_fallen(lines)):
            return None
        seen += f"; {scored.who} are at {best:.3f} at best and were at {before:.3f} before the first step"
        if before - best > noise or (not taught and 1 - before > noise):
            return Verdict(
                "not learning", f"{seen}; start another --run with another --optimizer.lr, or {GO_ON}"
            )
    if last < FELL * start and _has_fallen(lines):
        return None
    return Verdict(
        "cannot tell",
        f"{seen}, which does not show that the run has learned; keep more people back (--split.validation), start another "
        f"--run with another --optimizer.lr, or {GO_ON}",
    )


def _has_fallen(lines: list[dict[str, Any]]) -> bool:
    """Whether the loss of the last quarter is below that of the first lines by more than the lines differ by chance."""
    losses = [line["loss"] for line in lines]
    first, late = losses[: len(losses) // LEAST_LINES], _quarters(losses)[3]
    error = statistics.pstdev(late) * math.sqrt(1 / len(first) + 1 / len(late))
    return _mean(first) - _mean(late) > NOISE * error


def _fallen(scored: Scored) -> Verdict | None:
    """The verdict on accuracies that have fallen by more than noise: the last quarter of them against the best one."""
    *before, last = _quarters(scored.checkpoints)
    if not before:
        return None
    best = max(before, key=_mean)
    highest, now = _mean(best), _mean(last)
    if highest - now <= max(LOST, scored.noise((highest, len(best)), (now, len(last)))):
        return None
    seen = f"{scored.who} were at {highest:.3f} in their best quarter and are at {now:.3f} in the last"
    if scored.kept_back:
        return Verdict(
            "overfitting",
            f"{seen}; use run/best, or start another --run with fewer --steps, more --augment or more people",
        )
    return Verdict("not learning", f"{seen}; start another --run with a smaller --optimizer.lr")


def _by_loss(lines: list[dict[str, Any]], scored: Scored | None, at_collapse: float | None) -> Verdict:
    """The verdict on a run that has learned: whether more steps would help."""
    before, last = _quarter(lines, 2), _quarter(lines, 3)
    validated = scored.checkpoints if scored and scored.kept_back else []
    if last < ZERO * (at_collapse or _start(lines)):
        return Verdict(
            "learning",
            f"the loss is zero ({last:.4f}), {_standing(scored)}. More steps change nothing; harder triplets do "
            "(--mining.strategy batch_hard, a larger --mining.margin or --batch.p), or more --augment, or more people",
        )
    if last >= STILL_FALLING * before:
        return Verdict("learning", f"the loss has settled ({last:.4f}), {_standing(scored)}")
    if _has_stopped(validated):
        return Verdict(
            "learning",
            f"the loss still falls, but in the last quarter of the steps no checkpoint exceeded the {max(validated):.3f} that "
            "validation people had reached; more people or more --augment may help, more --steps hardly",
        )
    return Verdict(
        "under-trained",
        f"the loss of the last quarter is {last / before:.2f} of the quarter before and still falls, {_standing(scored)}; "
        f"{GO_ON}",
    )


def _standing(scored: Scored | None) -> str:
    """How good the run is at its end, and for whom."""
    if scored and scored.kept_back:
        return f"validation people are at {scored.checkpoints[-1]:.3f} (best {max(scored.checkpoints):.3f})"
    if scored is None:
        return "and nobody is kept back for validation"
    return (
        f"and nobody is kept back for validation: {scored.who} are at {scored.checkpoints[-1]:.3f}, "
        "which does not say how other people are told apart"
    )


def _best(accuracies: list[float]) -> float:
    """The third best of many: of sixty checkpoints of a network that learns nothing, one is lucky."""
    return sorted(accuracies, reverse=True)[min(2, len(accuracies) // 4)]


def _has_stopped(validated: list[float]) -> bool:
    """Whether the last quarter of many checkpoints has no new best."""
    late = len(validated) // 4
    return len(validated) >= LEAST_LINES and max(validated[-late:]) <= max(validated[:-late])


def _quarters(values: list[float]) -> list[list[float]]:
    """Four parts of about the same length, in their order; each value is a part if there are fewer than four."""
    parts = min(4, len(values))
    edges = [round(len(values) * place / parts) for place in range(parts + 1)]
    return [values[start:stop] for start, stop in itertools.pairwise(edges)]


def _quarter(lines: list[dict[str, Any]], number: int) -> float:
    """Mean loss of a quarter of the lines, 0 to 3."""
    return _mean(_quarters([line["loss"] for line in lines])[number])


def _start(lines: list[dict[str, Any]]) -> float:
    """Mean loss of the first eighth of the lines."""
    return _mean([line["loss"] for line in lines[: len(lines) // LEAST_LINES]])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
