"""The testbed: hosts that are hosts to Ray, faults that are faults, and nothing left of it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from subprocess import run

import pytest

from cluster.testbed import Testbed, TestbedError, missing
from tests.support.processes import runs, started

ASK = (
    "import json, ray; ray.init(log_to_driver=False, logging_level='ERROR'); "
    "print(json.dumps([(n['NodeManagerHostname'], n['NodeManagerAddress']) for n in ray.nodes() if n['Alive']]))"
)


def nodes(testbed: Testbed) -> dict[str, str]:
    """Address by hostname of the nodes that Ray holds to be alive."""
    said = run(
        [*testbed.inside("head"), sys.executable, "-c", ASK], capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0, said.stderr[-2000:]
    return dict(
        json.loads(next(line for line in said.stdout.splitlines() if line.startswith("[[")))
    )  # Ray adds lines of its own


def until(testbed: Testbed, hosts: set[str]) -> None:
    end = time.monotonic() + 120
    while (found := set(nodes(testbed))) != hosts:
        assert time.monotonic() < end, f"Ray sees {found}, not {hosts}"


@pytest.mark.cluster
def test_hosts_have_names_and_addresses_lose_cable_and_power_and_leave_nothing() -> None:
    if lacking := missing():
        pytest.skip(lacking)
    with Testbed(hosts=2, name="pytest") as testbed:
        subnet = testbed.subnet
        assert nodes(testbed) == {"head": f"{subnet}.1", "h1": f"{subnet}.2", "h2": f"{subnet}.3"}
        pids = {
            pid: started(pid)
            for host in testbed.standing()
            for pid, _ in testbed.processes(host)
            if runs(pid)
        }
        testbed.cut("h1")
        until(testbed, {"head", "h2"})
        testbed.mend("h1")
        until(testbed, {"head", "h1", "h2"})
        testbed.kill("h2")
        assert set(testbed.standing()) == {"head", "h1"}
        until(testbed, {"head", "h1"})
    assert testbed.standing() == []
    assert not [pid for pid, began in pids.items() if started(pid) == began]
    assert not [link.name for link in Path("/sys/class/net").iterdir() if link.name.startswith("pytest-")]
    assert not Path("/run/facerec-pytest").exists()
    assert "facerec-pytest" not in Path("/proc/mounts").read_text()


CONNECT = (
    "import socket, time; began = time.monotonic(); socket.create_connection(({!r}, 6379)); "
    "print(time.monotonic() - began)"
)


@pytest.mark.cluster
def test_what_a_slow_host_receives_is_late() -> None:
    if lacking := missing():
        pytest.skip(lacking)
    with Testbed(hosts=1, name="slowed") as testbed:
        connect = [*testbed.inside("h1"), sys.executable, "-c", CONNECT.format(testbed.head)]
        took = []
        for milliseconds in (300, 0):
            try:
                testbed.slow("h1", milliseconds)
            except TestbedError as error:
                pytest.skip(str(error))
            took.append(float(run(connect, capture_output=True, text=True, timeout=60, check=True).stdout))
    assert took[0] > 0.3 > took[1]
