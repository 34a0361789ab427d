"""`make bench-hosts`: align, train, embed and evaluate submitted to three hosts, of which one loses power and one its cable.

The hosts are network namespaces (cluster/testbed.py), two of them train and one is the spare. A host loses power when a
third of the alignment is done, and a new one joins; the cable of a host that trains is cut at a third of the steps, and
another new one joins. Measured are all stages beside those of an undisturbed run, and the seconds from the cut until
metrics pass the step that was in flight; compared is all that both runs leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.testbed import Testbed
from tests.bench.chaos import training_host
from tests.bench.pipeline import (
    LIMIT_S,
    PARTS,
    Stage,
    Submitted,
    differences,
    hosts_and_two_runs,
    undisturbed,
)
from tests.bench.targets import Row, conclude

STEPS = 300


def main() -> None:
    """The pipeline undisturbed, then with its accidents; compare, print, and exit 1 where it fell short."""
    with hosts_and_two_runs("hosts", STEPS) as (testbed, quiet, other, alone):
        accidents = Accidents(testbed)
        took = {
            "align": accidents.align(other.stages[0]),
            "train": accidents.train(other.stages[1]),
            **{stage.name: undisturbed(testbed, stage) for stage in other.stages[2:]},
        }
        _report(alone, took, accidents, differences(quiet, other))


class Accidents:
    """What happens in the second run, and how long it was felt."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        self.felt_s: dict[str, float] = {}

    def align(self, stage: Stage) -> float:
        """A host loses power, and a new one joins."""
        began = time.monotonic()
        job = Submitted(self._testbed, stage)
        self._until(job, lambda: stage.progress() >= PARTS // 3)
        self._testbed.kill("h1")
        self._measure("power cut in alignment: the next part after", job, stage)
        self._testbed.add("h4")
        return self._end(job, began)

    def train(self, stage: Stage) -> float:
        """The cable of a host that trains is cut for good, and a new host joins."""
        began = time.monotonic()
        job = Submitted(self._testbed, stage)
        self._until(job, lambda: stage.progress() >= STEPS // 3)
        host = training_host(self._testbed)
        self._testbed.cut(host)
        self._measure("cut cable in training: training again after", job, stage)
        self._testbed.kill(host)
        self._testbed.add("h5")
        return self._end(job, began)

    def _measure(self, what: str, job: Submitted, stage: Stage) -> None:
        began, before = time.monotonic(), stage.progress()
        self._until(job, lambda: stage.progress() >= before + 2)  # one may have been in flight
        self.felt_s[what] = time.monotonic() - began
        print(f"{what} {self.felt_s[what]:.1f} s", flush=True)

    @staticmethod
    def _until(job: Submitted, come: Callable[[], bool]) -> None:
        until = time.monotonic() + LIMIT_S
        while not come():
            if time.monotonic() > until:
                raise SystemExit(f"not so far in {LIMIT_S:.0f} s\n{job.said()[-3000:]}")
            time.sleep(0.05)

    def _end(self, job: Submitted, began: float) -> float:
        self._until(job, job.ended_well)
        if job.gave_up:
            raise SystemExit(f"the job gave up by itself {job.gave_up} times\n{job.said()[-3000:]}")
        return time.monotonic() - began


def _report(
    alone: dict[str, float], took: dict[str, float], accidents: Accidents, compared: list[Row]
) -> None:
    rows = []
    for stage, seconds in alone.items():
        rows += [Row(f"{stage}, undisturbed", seconds, "s"), Row("  this run", took[stage], "s")]
    rows += [
        Row(what, seconds, "s", at_most=25 if "training" in what else None)
        for what, seconds in accidents.felt_s.items()
    ]
    conclude("bench-hosts", rows + compared, ["a head and three hosts of one CPU, on one machine"])


if __name__ == "__main__":
    main()
