"""What became of a run, in a word: from its metrics, and from people that it was validated on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from facerec.training.measures import COLLAPSE_LINES, CollapseWatch

Word = Literal["learning", "not learning", "overfitting", "collapsed", "under-trained", "too short to tell"]

LEAST_LINES = 8
"""Lines of metrics, below which two quarters of them mean nothing."""
STILL_FALLING = 0.95
"""Loss of the last quarter over the quarter before, below which more steps would have helped."""
LOST = 0.03
"""Of the validation's nearest-neighbour accuracy since its best, from which on the run learns its people by heart."""
LEARNT = 0.95
"""Error of the validation's best over that before the first step, above which the run has taught nothing."""


@dataclass(frozen=True)
class Verdict:
    """A word, and a sentence with the numbers behind it and what to change."""

    word: Word
    why: str

    def __str__(self) -> str:
        return f"{self.word}: {self.why}"


def verdict(lines: list[dict[str, Any]], loss_at_collapse: float | None, margin: float) -> Verdict:
    """The verdict on a finished run's metrics, in their order; the rest as of ``CollapseWatch``."""
    watch = CollapseWatch(loss_at_collapse, margin)
    looks = [watch.warning(line) for line in lines]
    late = [said for said in looks[-max(COLLAPSE_LINES, len(looks) // 4) :] if said]
    if late:
        return Verdict("collapsed", late[-1].partition("collapsed: ")[2])
    if len(lines) < LEAST_LINES:
        return Verdict(
            "too short to tell", f"{len(lines)} lines of metrics; {LEAST_LINES} are needed (--log_every)"
        )
    validated = [line["validation"]["nearest_neighbour"] for line in lines if "validation" in line]
    untrained = lines[0].get("untrained", {}).get("nearest_neighbour")
    if untrained is not None and validated and 1 - _best(validated) > LEARNT * (1 - untrained):
        return Verdict(
            "not learning",
            f"validation people are at {_best(validated):.3f} at best, and were at {untrained:.3f} before the first step; start "
            "another --run with a smaller --optimizer.lr, or take more --steps",
        )
    before, last = _quarter(lines, 2), _quarter(lines, 3)
    ratio = last / before if before else 1.0
    if validated and max(validated) - validated[-1] > LOST:
        return Verdict(
            "overfitting",
            f"validation people were at {max(validated):.3f} and are at {validated[-1]:.3f}; take run/best, fewer --steps, "
            f"more --augment or more people",
        )
    if ratio < STILL_FALLING and _has_stopped(validated):
        return Verdict(
            "learning",
            f"the loss still falls, but the last quarter of the steps gave validation people nothing beyond {max(validated):.3f}; "
            "more people or more --augment may, more --steps hardly",
        )
    if ratio < STILL_FALLING:
        return Verdict(
            "under-trained",
            f"the loss of the last quarter is {ratio:.2f} of the quarter before and still falls; take more --steps",
        )
    said = (
        f"validation people are at {validated[-1]:.3f}, the best yet or near it"
        if validated
        else "no people are kept back"
    )
    return Verdict("learning", f"the loss has settled ({last:.4f}), {said}")


def _best(validated: list[float]) -> float:
    """The third best of many: of sixty checkpoints of a network that learns nothing, one is lucky."""
    return sorted(validated, reverse=True)[min(2, len(validated) // 4)]


def _has_stopped(validated: list[float]) -> bool:
    """Whether the last quarter of many checkpoints has no new best."""
    late = len(validated) // 4
    return len(validated) >= LEAST_LINES and max(validated[-late:]) <= max(validated[:-late])


def _quarter(lines: list[dict[str, Any]], number: int) -> float:
    """Mean loss of a quarter of the lines, 0 to 3."""
    edges = [round(len(lines) * place / 4) for place in (number, number + 1)]
    losses = [line["loss"] for line in lines[edges[0] : edges[1]]]
    return float(sum(losses) / len(losses))
