"""A run of [1, 2] workers takes a host that joins, outlives one that dies, and sees the same batches all along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.testbed import Testbed
from facerec.telemetry import read_json_lines
from tests.support.job import Job
from tests.support.processes import await_that

STEPS = 100_000


@pytest.mark.cluster
def test_a_run_grows_with_a_host_that_joins_and_shrinks_when_it_dies_on_the_same_batches(
    shared: Path,
) -> None:
    with Testbed(hosts=1, name="elastic", shared=(shared,)) as testbed:
        job = Job(shared, "elastic", STEPS, {"GLOO_SOCKET_IFNAME": "eth0"}, num_workers=(1, 2))
        job.start(*testbed.inside("head"))  # ends with its host
        _await(job, lambda line: line["step"] >= 8)
        testbed.add("h2")
        _await(job, lambda line: line["workers"] == 2)
        testbed.kill("h2")
        lines = _await(job, lambda line: line["workers"] == 1)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    alone = Job(shared, "alone", STEPS, {}, num_workers=0)
    process = alone.start()
    try:
        same = _await(alone, lambda line: line["step"] >= len(lines))
    finally:
        process.kill()
        process.wait()
    assert [line["batches"] for line in lines] == [line["batches"] for line in same[: len(lines)]]


def _await(job: Job, holds: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """All lines of the metrics as soon as the last one is what is waited for."""
    lines: list[dict[str, Any]] = []

    def come() -> bool:
        lines[:] = read_json_lines(str(job.run / "metrics.jsonl"))
        return bool(lines) and holds(lines[-1])

    await_that(come, job.said)
    return lines
