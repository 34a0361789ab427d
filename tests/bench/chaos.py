"""What the chaos benchmarks share: a run on a small cluster that is undone, looked after, and compared."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.testbed import Testbed, ray_settings
from facerec.session import fresh_token
from tests.support.job import Restartable
from tests.support.nodes import Nodes
from tests.support.processes import named, nothing_left

LIMIT_S = 1800.0


@contextlib.contextmanager
def cluster(count: int) -> Iterator[tuple[Path, Nodes]]:
    """A folder and ``count`` nodes of one CPU. Nothing is left of either, however the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    # A folder of its own, so that no other Ray here is met; short, because Ray's sockets are below it.
    os.environ |= {"RAY_TMPDIR": str(folder), **ray_settings()}
    with nothing_left(folder), fresh_token():
        nodes = Nodes(count)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in place of Ray's, which drains for 30 s
        yield folder, nodes


def undisturbed(job: Restartable) -> float:
    """Seconds of a run that nobody disturbs."""
    began = time.monotonic()
    if job.start().wait(timeout=LIMIT_S) != 0:
        raise SystemExit(f"the undisturbed run failed\n{job.said()}")
    return time.monotonic() - began


class Disturbed:
    """A job whose driver, actors and raylets are killed, and whose driver is started again by the same command."""

    def __init__(self, nodes: Nodes, job: Restartable, actor: str, seed: int) -> None:
        """``actor`` is a word in the command line of those that can be killed."""
        self._nodes, self._job, self._actor = nodes, job, actor
        self.random = random.Random(seed)
        self.exits = 0
        """Times that the driver gave up by itself."""
        self.driver: subprocess.Popen[bytes] = job.start()
        self._until = time.monotonic() + LIMIT_S

    def kill(self, what: str) -> bool:
        """Kill the driver, a raylet with an actor, or an actor; False where there was none to kill."""
        if what == "driver":
            self.driver.kill()
            self.driver.wait()
            return True
        actors = named(self._actor)
        if not actors:
            return False
        victim = self.random.choice(actors)
        if what == "raylet":
            return self._nodes.kill_and_replace(victim)
        os.kill(victim, signal.SIGKILL)
        return True

    def tend(self, finished: bool) -> None:
        """Look after the driver: start an ended one again, unless it ended well and the work is ``finished``."""
        if time.monotonic() > self._until:
            raise SystemExit(f"not done after {LIMIT_S:.0f} s\n{self._job.said()}")
        status = self.driver.poll()
        if status is None or (status == 0 and finished):
            return
        if status != -signal.SIGKILL:
            self.exits += 1
            print(f"     the driver gave up by itself with status {status}", flush=True)
        self.driver = self._job.start()


def training_host(testbed: Testbed) -> str:
    """One of the hosts that train."""
    return next(
        host
        for host in testbed.standing()
        if any("RayTrainWorker" in said for _, said in testbed.processes(host))
    )


def apart(one: pa.ChunkedArray, other: pa.ChunkedArray) -> float:
    """The largest difference of two columns of lists; infinite where they are not as long."""
    if len(one) != len(other):
        return float("inf")
    stacked = (np.stack(column.to_numpy(zero_copy_only=False)) for column in (one, other))
    return float(np.abs(np.subtract(*stacked)).max())
