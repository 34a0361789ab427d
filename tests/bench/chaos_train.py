"""`make chaos-train`: one training run under 22 SIGKILLs, and at its end the weights of an undisturbed run, bit for bit.

Killed are Ray Train's workers, the raylets under them and the driver, in a seeded order at seeded steps; every fifth
kill comes while the run still recovers from the one before. The cluster is real, if small: a head without CPUs and three
nodes of one CPU, one of them a spare; a killed raylet is replaced by a new node, an ended driver by the same command.
What is trained stands in tests/support/job.py.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from tests.bench.chaos import Disturbed, cluster, undisturbed
from tests.bench.targets import Row, conclude
from tests.support.job import Job
from tests.support.nodes import Nodes

STEPS, SEED = 300, 0
KILLS = ["worker"] * 10 + ["raylet"] * 6 + ["driver"] * 6


@dataclass
class Kill:
    """One SIGKILL, and how long it was felt."""

    what: str
    early: bool
    """Whether the run was still recovering from the kill before."""
    step: int
    at: float
    recovered_s: float | None = None

    def __str__(self) -> str:
        return f"{self.what} killed at step {self.step}" + (", recovering still" if self.early else "")


def main() -> None:
    """Train undisturbed, train under kills, compare, print, and exit 1 where it fell short."""
    with cluster(3) as (folder, nodes):
        quiet, job = (
            Job(folder, name, STEPS, {"RAY_ADDRESS": nodes.address}) for name in ("undisturbed", "run")
        )
        print(f"chaos-train: an undisturbed run of {STEPS} steps first", flush=True)
        alone = undisturbed(quiet)
        began = time.monotonic()
        chaos = Chaos(nodes, job)
        chaos.run()
        took = (alone, time.monotonic() - began)
        _report(chaos, quiet.weights() == job.weights(), took)


class Chaos:
    """The disturbed run: kills what is drawn when its step has come, and keeps the run going."""

    def __init__(self, nodes: Nodes, job: Job) -> None:
        self.job, self.kills = job, list[Kill]()
        self.disturbed = Disturbed(nodes, job, "RayTrainWorker", SEED)

    def run(self) -> None:
        """All kills, then to the end of training."""
        random = self.disturbed.random
        kinds = random.sample(KILLS, len(KILLS))
        steps = sorted(random.sample(range(1, STEPS - 40), len(kinds)))
        for number, (what, step) in enumerate(zip(kinds, steps, strict=True)):
            early = number % 5 == 4
            if early:
                self._watch_for(random.uniform(2, 8))
            else:
                self._watch_until(step)
            self._kill(what, early)
        while not (self.job.finished and self.disturbed.driver.poll() == 0):
            self._watch()

    def _kill(self, what: str, early: bool) -> None:
        while not self.disturbed.kill(what):  # between two worker groups there is nobody
            self._watch()
        self.kills.append(Kill(what, early, self.job.step(), time.monotonic()))
        print(f"{len(self.kills):3}  {what:7} killed at step {self.kills[-1].step}", flush=True)

    def _watch_until(self, step: int) -> None:
        """Until the run has come to the step and has recovered from all that was done to it."""
        while self.job.step() < step or any(kill.recovered_s is None for kill in self.kills):
            self._watch()

    def _watch_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._watch()

    def _watch(self) -> None:
        time.sleep(0.1)
        now, step = time.monotonic(), self.job.step()
        for kill in self.kills:
            if kill.recovered_s is None and step > kill.step + 1:  # one step may have been in flight
                kill.recovered_s = now - kill.at
        self.disturbed.tend(self.job.finished)


def _report(chaos: Chaos, identical: bool, took: tuple[float, float]) -> None:
    rows = [
        Row(f"{number:2}  {kill}", kill.recovered_s or float("inf"), "s")
        for number, kill in enumerate(chaos.kills, 1)
    ]
    for what in ("worker", "raylet", "driver", ""):
        seconds = [kill.recovered_s or float("inf") for kill in chaos.kills if kill.what.startswith(what)]
        rows.append(
            Row(f"recovery, median of {len(seconds)} {what}".rstrip(), statistics.median(seconds), "s")
        )
        rows.append(Row("  longest", max(seconds), "s"))
    rows += [
        Row("the run, undisturbed", took[0], "s"),
        Row("the run, disturbed", took[1], "s"),
        Row("times that the driver gave up by itself", chaos.disturbed.exits, ""),
        Row("kills", len(chaos.kills), "", at_least=20),
        Row("weights equal those of the undisturbed run (1 is yes)", identical, "", at_least=1),
    ]
    conclude(
        "chaos-train",
        rows,
        ["Recovery: seconds from a kill until metrics pass the step that was in flight at the kill."],
    )


if __name__ == "__main__":
    main()
