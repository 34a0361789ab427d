"""A drained node: a checkpoint at once, and training goes on from there on another; without Ray nobody asks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray.train import PreemptionInfo

from cluster.testbed import Testbed
from facerec.training import notice
from facerec.training.notice import LOOK_S, Notice
from tests.support.job import ROOT, Job
from tests.support.processes import await_that


def test_without_ray_there_is_no_notice() -> None:
    assert not Notice(under_ray=False, start=0).come(1)


def test_a_checkpoint_is_due_once_at_a_notice_and_once_shortly_before_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(notice.time, "time", lambda: now[0])
    monkeypatch.setattr(notice.time, "monotonic", lambda: now[0])
    told: list[Any] = [None]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: told[0])
    it, due = Notice(under_ray=True, start=0), []
    for step in range(1, 301):  # a second each
        now[0] += 1
        if step == 100:
            told[0] = PreemptionInfo(deadline_ms=(now[0] + 60) * 1000, preempted_node_to_ranks={"a": [1]})
        if it.come(step):
            due.append(step)
    assert len(due) == 2
    assert 100 <= due[0] <= 100 + LOOK_S + 1
    assert 150 <= due[1] <= 156


@pytest.mark.cluster
def test_a_node_that_will_be_taken_away_leaves_a_checkpoint_of_the_step_it_came_at(shared: Path) -> None:
    with Testbed(hosts=2, name="notice", shared=(shared,)) as testbed:
        job = Job(shared, "notice", 100_000, {"GLOO_SOCKET_IFNAME": "eth0"}, checkpoint_every=10**6)
        job.start(*testbed.inside("head"))  # ends with its host
        await_that(lambda: job.step() >= 8, job.said)
        _announce(testbed, "h1", shared)
        await_that(lambda: bool(_checkpoints(job)), job.said, limit_s=50)
        (step,) = _checkpoints(job)
        found = re.search(r"will be taken away in (\d+) s: checkpoint after step (\d+)", job.said())
        assert found, job.said()
        assert 0 < int(found[1]) <= 60
        assert int(found[2]) == step
        testbed.add("h3")
        testbed.kill("h1")
        await_that(lambda: "going on after step" in job.said(), job.said)
        resumed = re.findall(r"going on after step (\d+)", job.said())
        assert int(resumed[-1]) >= step
        reached = job.step()
        await_that(lambda: job.step() > reached, job.said)


def _checkpoints(job: Job) -> list[int]:
    return [json.loads(about.read_text())["step"] for about in job.run.glob("checkpoints/*/state.json")]


def _announce(testbed: Testbed, host: str, folder: Path) -> None:
    """EC2's notice of a minute on a host, and the watcher that aws.yaml starts there."""
    python = [*testbed.inside(host), sys.executable]
    served = folder / "metadata.txt"
    with served.open("wb") as file:
        subprocess.Popen([*python, "-m", "tests.support.metadata", "60"], stdout=file, cwd=ROOT)
    await_that(lambda: served.read_text().endswith("\n"), served.read_text, limit_s=30)
    watcher = [*python, str(ROOT / "cluster" / "spot.py"), "--metadata", served.read_text().strip()]
    subprocess.run(watcher, check=True, timeout=60, capture_output=True, cwd=ROOT)
