"""The pool of detectors takes a host that joins the cluster, and goes on without one that dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cluster.testbed import Testbed
from facerec import publish
from facerec.synthetic import SyntheticConfig, write_collection
from tests.support.job import Restartable
from tests.support.processes import await_that


@pytest.mark.cluster
def test_the_pool_grows_with_a_host_that_joins_and_outlives_one_that_dies(shared: Path) -> None:
    write_collection(shared / "drawn", SyntheticConfig(identities=4, photographs=25))
    photographs = sorted((shared / "drawn").rglob("*.jpg"))
    rows = [f"{path},name {number}" for path in photographs for number in range(20)]
    (shared / "list.csv").write_text("\n".join(["uri,identity", *rows, ""]))
    arguments = ["--source", str(shared / "list.csv"), "--out", str(shared / "faces"), "--part", "10"]
    job = Restartable("align.py", arguments, shared / "log", {})
    parts = shared / "faces" / "parts"
    with Testbed(hosts=1, name="pool", shared=(shared,)) as testbed:

        def aligners(host: str) -> list[int]:
            return [process for process, said in testbed.processes(host) if "Aligner" in said]

        driver = job.start(*testbed.inside("head"))
        await_that(lambda: len(list(parts.glob("*"))) >= 2, job.said)
        [first] = aligners("h1")
        os.kill(first, signal.SIGSTOP)  # so that there is work left when the second host has come
        testbed.add("h2")
        await_that(lambda: len(aligners("h2")) == 1, job.said)
        testbed.kill("h1")
        assert driver.wait(timeout=240) == 0, job.said()
    counts = publish.open_dataset(str(shared / "faces"), "jobs/align.py").manifest["counts"]
    assert counts["photographs"] == len(rows)
    assert counts["faces"] + sum(counts["image_rejects"].values()) == len(rows)
