"""The real autoscaler: alignment and elastic training take a cluster from no nodes to all of it and back to none."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from facerec import publish
from facerec.synthetic import SyntheticConfig, write_collection
from facerec.telemetry import read_json_lines
from tests.support.autoscaling import Autoscaled
from tests.support.job import Job, Restartable
from tests.support.processes import await_that, nothing_left

pytestmark = pytest.mark.cluster

MOST = 2


@pytest.fixture
def cloud() -> Iterator[tuple[Autoscaled, Path]]:
    folder = Path(tempfile.mkdtemp(prefix="auto-"))
    with nothing_left(folder):
        yield Autoscaled(folder, MOST), folder


def test_alignment_takes_the_cluster_from_nothing_to_all_nodes_and_back(
    cloud: tuple[Autoscaled, Path],
) -> None:
    cluster, folder = cloud
    write_collection(folder / "photographs", SyntheticConfig(identities=8, photographs=100))
    arguments = ["--source", str(folder / "photographs"), "--out", str(folder / "faces"), "--part", "8"]
    job = Restartable("align.py", arguments, folder / "align.log", _environment(cluster))
    assert cluster.nodes() == 0
    process = job.start()
    await_that(lambda: cluster.nodes() == MOST, job.said)
    assert process.wait(timeout=300) == 0
    _await_nobody(cluster)
    faces = publish.open_dataset(str(folder / "faces"), "jobs/align.py")
    assert faces.manifest["counts"]["photographs"] == 800


def test_elastic_training_grows_with_the_cluster_and_leaves_none_of_it(
    cloud: tuple[Autoscaled, Path],
) -> None:
    cluster, folder = cloud
    job = Job(folder, "elastic", 10**6, _environment(cluster), num_workers=(1, MOST))
    assert cluster.nodes() == 0
    process = job.start()
    # Where one node came before the other, training begins on it, and Ray Train looks again after a minute.
    await_that(lambda: any(line["workers"] == MOST for line in _lines(job)), job.said)
    assert cluster.nodes() == MOST
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    _await_nobody(cluster)
    lines = _lines(job)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))


def _environment(cluster: Autoscaled) -> dict[str, str]:
    return cluster.environment | {"RAY_ADDRESS": cluster.address}


def _lines(job: Job) -> list[dict[str, Any]]:
    return read_json_lines(str(job.run / "metrics.jsonl"))


def _await_nobody(cluster: Autoscaled) -> None:
    await_that(lambda: cluster.nodes() == 0, cluster.said, limit_s=90)
    assert max(count for _, count in cluster.curve()) == MOST
