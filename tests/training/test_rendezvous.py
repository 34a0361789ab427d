"""The workers of a local Ray meet without a port that other machines can reach."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from cluster.testbed import missing
from facerec.telemetry import read_json_lines
from tests.support.job import Job
from tests.support.outsider import namespaces
from tests.support.processes import await_that


def test_no_port_of_a_training_listens_outside_loopback() -> None:
    """With two workers, so that they exchange gradients, on a host whose name stands for its address on the network."""
    if lacking := missing():
        pytest.skip(lacking)
    with (
        tempfile.TemporaryDirectory(prefix="meet-", ignore_cleanup_errors=True) as made,
        namespaces() as pair,
    ):
        folder = Path(made)
        job = Job(folder, "run", 10**6, {"TMPDIR": made})
        process = job.start(*pair.inside(pair.home))
        try:
            lines = job.run / "metrics.jsonl"
            await_that(lambda: lines.exists() and len(read_json_lines(str(lines))) > 2, job.said)
            ports = pair.ports()
            workers = [port for port in ports if port.program.startswith("ray::RayTrainWo")]
            assert len(workers) >= 4  # Ray's and gloo's, of two workers
            assert [port for port in ports if port.address != "127.0.0.1"] == []
        finally:
            process.kill()
            process.wait()
