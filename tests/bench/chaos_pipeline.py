"""`make chaos`: the whole pipeline under 50 faults, on hosts in network namespaces, and all that an undisturbed one leaves.

A head and three workers (cluster/testbed.py); the jobs are submitted to it (tests/bench/pipeline.py). Faults come in a
seeded order, each once the job has got on after the one before; every fifth comes while it still recovers. A killed
raylet or host is replaced, a cut cable mended after 2 to 25 s, a frozen host woken after 2 to 15 s, when Ray has often
given it up, and a dead driver submitted again by the same command.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

from cluster.testbed import Testbed
from tests.bench.pipeline import Pipeline, Stage, Submitted, differences, hosts_and_two_runs
from tests.bench.targets import Row, conclude

STEPS, SEED = 400, 0
FAULTS = {"worker": 15, "raylet": 9, "driver": 10, "power": 7, "cable": 7, "freeze": 6}
SHARE = {"align": 0.2, "train": 0.5, "stream": 0.18, "embeddings": 0.04, "untrained": 0.04, "evaluate": 0.04}
"""Of the faults, by stage; what a stage was too quick for comes in the next, and a few may be left at the end."""
RECOVERY_S = 120.0


def main() -> None:
    """The pipeline undisturbed, the pipeline under faults; compare, print, and exit 1 where anything differs."""
    with hosts_and_two_runs("chaos", STEPS) as (testbed, quiet, disturbed, alone):
        chaos = Chaos(testbed, disturbed)
        for stage in disturbed.stages:
            chaos.disturb(stage)
        _report(chaos, alone, differences(quiet, disturbed))


class Hosts:
    """The workers of a testbed, and what can befall them."""

    def __init__(self, testbed: Testbed, random: random.Random) -> None:
        self._testbed, self._random = testbed, random
        self._new = 0
        self._mending: tuple[float, Callable[[], None]] | None = None
        """When, and how, the cable or the breath of a host comes back: of one at a time."""

    def befall(self, what: str) -> bool:
        """Do it to one of them; False where there is nothing to do it to."""
        self.mend()
        if what in ("cable", "freeze") and self._mending:
            return False
        found: bool = getattr(self, f"_{what}")(self._random.choice(self._workers()))
        return found

    def mend(self, at_once: bool = False) -> None:
        """Put right what has been wrong for long enough."""
        if self._mending and (at_once or time.monotonic() > self._mending[0]):
            mend, self._mending = self._mending[1], None
            mend()

    def _workers(self) -> list[str]:
        return [host for host in self._testbed.standing() if host != "head"]

    def _worker(self, host: str) -> bool:
        pids = [
            pid
            for pid, said in self._testbed.processes(host)
            if said.startswith("ray::") and "Agent" not in said and "IDLE" not in said
        ]
        return self._end(self._random.choice(pids)) if pids else False

    def _raylet(self, host: str) -> bool:
        raylets = [pid for pid, said in self._testbed.processes(host) if "raylet/raylet " in said]
        return self._end(raylets[0]) if raylets else False

    def _power(self, host: str) -> bool:
        self.mend(at_once=True)
        self._testbed.kill(host)
        self._new += 1
        self._testbed.add(f"n{self._new}")
        return True

    def _cable(self, host: str) -> bool:
        self._testbed.cut(host)
        self._mending = time.monotonic() + self._random.uniform(2, 25), lambda: self._testbed.mend(host)
        return True

    def _freeze(self, host: str) -> bool:
        pids = [pid for pid, _ in self._testbed.processes(host)]
        self._signal(pids, signal.SIGSTOP)
        self._mending = (
            time.monotonic() + self._random.uniform(2, 15),
            lambda: self._signal(pids, signal.SIGCONT),
        )
        return True

    @staticmethod
    def _signal(pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @staticmethod
    def _end(pid: int) -> bool:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


class Chaos:
    """The disturbed run."""

    def __init__(self, testbed: Testbed, pipeline: Pipeline) -> None:
        self._testbed, self._pipeline = testbed, pipeline
        self._random = random.Random(SEED)
        faults = [what for what, count in FAULTS.items() for _ in range(count)]
        self._due = self._random.sample(faults, len(faults))
        self._hosts = Hosts(testbed, self._random)
        self._parts: dict[str, int] = {}
        self.befallen: list[tuple[str, str]] = []
        """(stage, fault)."""
        self.redone: set[str] = set()
        """Finished parts that were written again."""
        self.seconds: dict[str, float] = {}
        self.gave_up = 0
        self._share = 0.0

    def disturb(self, stage: Stage) -> None:
        """One stage, to its end."""
        began = time.monotonic()
        self._share += SHARE[stage.name]
        until = round(self._share * sum(FAULTS.values()))
        job = Submitted(self._testbed, stage)
        while not self._pause(stage, job):
            if len(self.befallen) < until:
                self._strike(stage, job)
        self._hosts.mend(at_once=True)
        self.gave_up += job.gave_up
        self.seconds[stage.name] = time.monotonic() - began

    def _strike(self, stage: Stage, job: Submitted) -> None:
        """The first of the due faults that finds its victim."""
        for number, what in enumerate(self._due):
            if job.kill() if what == "driver" else self._hosts.befall(what):
                del self._due[number]
                self.befallen.append((stage.name, what))
                print(f"{len(self.befallen):3}  {stage.name:8} {what:6} at {stage.progress()}", flush=True)
                return

    def _pause(self, stage: Stage, job: Submitted) -> bool:
        """Wait until the next fault is due; whether the stage has ended before."""
        early = len(self.befallen) % 5 == 4 or stage.name == "evaluate"
        began, before = time.monotonic(), stage.progress()
        longest = self._random.uniform(1, 5) if early else RECOVERY_S
        while time.monotonic() < began + longest and stage.progress() <= before + 1:
            if self._tend(job):
                return True
        rest = time.monotonic() + (0 if early else self._random.uniform(0, 2))
        while time.monotonic() < rest:
            if self._tend(job):
                return True
        return False

    def _tend(self, job: Submitted) -> bool:
        time.sleep(0.1)
        self._hosts.mend()
        for name, written in self._pipeline.parts().items():
            if self._parts.setdefault(name, written) != written:
                self.redone.add(name)
        return job.ended_well()


def _report(chaos: Chaos, alone: dict[str, float], compared: list[Row]) -> None:
    rows = []
    for stage, seconds in alone.items():
        rows += [
            Row(f"{stage}, undisturbed", seconds, "s"),
            Row(
                f"  under {sum(where == stage for where, _ in chaos.befallen)} faults",
                chaos.seconds[stage],
                "s",
            ),
        ]
    rows += [Row(f"faults: {kind}", sum(what == kind for _, what in chaos.befallen), "") for kind in FAULTS]
    rows += [
        Row("faults", len(chaos.befallen), "", at_least=50),
        Row("times that a job gave up by itself", chaos.gave_up, ""),
        Row("finished parts written again", len(chaos.redone), "", at_most=0),
        *compared,
    ]
    conclude("chaos", rows, ["a head and three hosts of one CPU, on one machine"])


if __name__ == "__main__":
    main()
