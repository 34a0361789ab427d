"""`make chaos-hosts`: cut cables and power cuts under training, on hosts in network namespaces.

A head, two workers and a spare (cluster/testbed.py); two ranks of tests/support/job.py. Measured are the seconds from the
fault at a host that trains until metrics pass the step that was in flight at the fault.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from cluster.testbed import Testbed, missing
from tests.bench.chaos import training_host
from tests.bench.targets import Row, conclude
from tests.support.job import Job

REPETITIONS, STEPS = 3, 100_000
TARGETS_S = {"cut": 25.0, "kill": 20.0}
LIMIT_S = 240.0


def main() -> None:
    """Cut and kill by turns, print, and exit 1 where recovery takes longer than its target."""
    if lacking := missing():
        raise SystemExit(f"chaos-hosts: {lacking}")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    seconds: dict[str, list[float]] = {"cut": [], "kill": []}
    try:
        with Testbed(hosts=3, name="chaos", shared=(folder,)) as testbed:
            job = Job(folder, "run", STEPS, {"GLOO_SOCKET_IFNAME": "eth0"})
            job.start(*testbed.inside("head"))  # ends with its host
            _await(job, 5)
            for number in range(REPETITIONS):
                for fault, measured in seconds.items():
                    measured.append(_recovery(testbed, job, fault, f"s{number}"))
                    print(f"{fault}: training again after {measured[-1]:.1f} s", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for fault, measured in seconds.items():
        rows += [Row(f"{fault}, {number}", value, "s") for number, value in enumerate(measured, 1)]
        rows.append(Row(f"{fault}, median", statistics.median(measured), "s"))
        rows.append(Row(f"{fault}, longest", max(measured), "s", at_most=TARGETS_S[fault]))
    conclude("chaos-hosts", rows, [])


def _recovery(testbed: Testbed, job: Job, fault: str, spare: str) -> float:
    """Seconds until training goes on; afterwards the cable is mended, or a new spare takes the dead host's place."""
    host = training_host(testbed)
    began = time.monotonic()
    (testbed.cut if fault == "cut" else testbed.kill)(host)
    _await(job, job.step() + 2)
    took = time.monotonic() - began
    if fault == "cut":
        testbed.kill(host)
    testbed.add(f"{spare}{fault}")
    _await(job, job.step() + 5)
    return took


def _await(job: Job, step: int) -> None:
    until = time.monotonic() + LIMIT_S
    while job.step() < step:
        if time.monotonic() > until:
            raise SystemExit(f"chaos-hosts: no step {step} in {LIMIT_S:.0f} s\n{job.said()}")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
