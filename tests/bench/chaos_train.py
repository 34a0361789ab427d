"""`make chaos-train`: one training run under 22 SIGKILLs, and at its end the weights of an undisturbed run, bit for bit.

Killed are Ray Train's workers, the raylets under them and the driver, in a seeded order at seeded steps; every fifth
kill comes while the run still recovers from the one before. The cluster is real, if small: a head without CPUs and three
nodes of one CPU, one of them a spare; a killed raylet is replaced by a new node, an ended driver by the same command.
What is trained stands in tests/bench/job.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.testbed import ray_settings
from tests.bench.job import Job
from tests.bench.targets import Row, conclude
from tests.support.processes import descendants

STEPS, SEED = 300, 0
KILLS = ["worker"] * 10 + ["raylet"] * 6 + ["driver"] * 6
LIMIT_S = 1800.0
SUBREAPER = 36
"""prctl's PR_SET_CHILD_SUBREAPER: what a killed raylet leaves becomes our child, so that it can be found and ended."""


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
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    # A folder of its own, so that no other Ray here is met; short, as Ray's sockets lie below it.
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder), **ray_settings()}
    with nothing_left(folder):
        nodes = _Nodes()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in place of Ray's, which drains for 30 s
        undisturbed, disturbed = (
            Job(folder, name, STEPS, {"RAY_ADDRESS": nodes.address}) for name in ("undisturbed", "run")
        )
        print(f"chaos-train: an undisturbed run of {STEPS} steps first", flush=True)
        began = time.monotonic()
        if undisturbed.start().wait(timeout=LIMIT_S) != 0:
            raise SystemExit(f"chaos-train: the undisturbed run failed\n{undisturbed.said()}")
        between = time.monotonic()
        chaos = Chaos(nodes, disturbed)
        chaos.run()
        took = (between - began, time.monotonic() - between)
        _report(chaos, undisturbed.weights() == disturbed.weights(), took)


class Chaos:
    """The disturbed run: kills what is drawn when its step has come, and keeps the run going."""

    def __init__(self, nodes: _Nodes, job: Job) -> None:
        self.nodes, self.job, self.kills = nodes, job, list[Kill]()
        self.driver = job.start()
        self.exits = 0
        """Times that the driver gave up by itself."""
        self._random = random.Random(SEED)
        self._until = time.monotonic() + LIMIT_S

    def run(self) -> None:
        """All kills, then to the end of training."""
        kinds = self._random.sample(KILLS, len(KILLS))
        steps = sorted(self._random.sample(range(1, STEPS - 40), len(kinds)))
        for number, (what, step) in enumerate(zip(kinds, steps, strict=True)):
            early = number % 5 == 4
            if early:
                self._watch_for(self._random.uniform(2, 8))
            else:
                self._watch_until(step)
            self._kill(what, early)
        while not (self.job.finished and self.driver.poll() == 0):
            self._watch()

    def _kill(self, what: str, early: bool) -> None:
        while not self._killed(what):
            self._watch()
        self.kills.append(Kill(what, early, self.job.step(), time.monotonic()))
        print(f"{len(self.kills):3}  {what:7} killed at step {self.kills[-1].step}", flush=True)

    def _killed(self, what: str) -> bool:
        """Whether there was one to kill; between two worker groups there is none."""
        if what == "driver":
            self.driver.kill()
            self.driver.wait()
            return True
        workers = [pid for pid in descendants(os.getpid()) if _is_worker(pid)]
        if not workers:
            return False
        victim = self._random.choice(workers)
        if what == "raylet":
            return self.nodes.kill_and_replace(victim)
        os.kill(victim, signal.SIGKILL)
        return True

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
        if now > self._until:
            raise SystemExit(f"chaos-train: not done after {LIMIT_S:.0f} s\n{self.job.said()}")
        for kill in self.kills:
            if kill.recovered_s is None and step > kill.step + 1:  # one step may have been in flight
                kill.recovered_s = now - kill.at
        self._restart_an_ended_driver()

    def _restart_an_ended_driver(self) -> None:
        status = self.driver.poll()
        if status is None or (status == 0 and self.job.finished):
            return
        if status != -signal.SIGKILL:
            self.exits += 1
            print(f"     the driver gave up by itself with status {status}", flush=True)
        self.driver = self.job.start()


class _Nodes:
    """Ray's nodes, all on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster()
        self._add(num_cpus=0, include_dashboard=True)  # Ray Train asks its API who is alive
        for _ in range(3):
            self._add(num_cpus=1)
        self.address: str = self._cluster.address

    def kill_and_replace(self, worker: int) -> bool:
        """SIGKILL the raylet that started this worker process, and add a node in its place; False if it is dead."""
        for node in self._cluster.worker_nodes:
            if worker in descendants(_raylet(node)):
                os.kill(_raylet(node), signal.SIGKILL)
                self._add(num_cpus=1)
                return True
        return False

    def _add(self, **settings: Any) -> None:
        self._cluster.add_node(wait=False, object_store_memory=100_000_000, **settings)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _is_worker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@contextlib.contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """However the block ends, Ctrl-C and SIGTERM too: no process of ours and no file in the folder outlives it."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        while left := list(descendants(os.getpid())):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        shutil.rmtree(folder, ignore_errors=True)


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
        Row("times that the driver gave up by itself", chaos.exits, ""),
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
