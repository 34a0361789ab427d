"""A Ray that a job starts is closed to everybody else, and a cluster's to everybody without its token."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.testbed import missing
from tests.support.knock import JOBS, READS, Answer
from tests.support.outsider import CLUSTER, HOME, SESSION, Namespaces, harmful, namespaces, running
from tests.support.processes import await_that

WEB = [sys.executable, "-m", "http.server", "8000", "--bind", "0.0.0.0", "--directory", "/var/empty"]


@pytest.fixture
def pair() -> Iterator[Namespaces]:
    if lacking := missing():
        pytest.skip(lacking)
    with namespaces() as made:
        yield made


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, because Ray's sockets are below it."""
    with tempfile.TemporaryDirectory(prefix="private-", ignore_cleanup_errors=True) as made:
        yield Path(made)


def statuses(answers: list[Answer], questions: tuple[str, ...]) -> dict[str, set[str]]:
    """The answers to each question, of all ports that know it."""
    absent = ("404", "405")
    return {
        asked: {said for _, q, said in answers if q == asked and said not in absent} for asked in questions
    }


def test_a_port_that_listens_on_all_interfaces_is_reached_from_the_other_namespace(pair: Namespaces) -> None:
    """The control of the test below: without it, a broken cable would pass for a closed Ray."""
    subprocess.Popen([*pair.inside(pair.home), *WEB], stderr=subprocess.DEVNULL)
    await_that(lambda: bool(pair.ports()), lambda: "no server", 60)
    answers = pair.knock(pair.away, HOME, "", Path("never"))
    assert {said for _, question, said in harmful(answers) if question.startswith("POST")} == {"501"}


def test_nobody_else_can_use_the_ray_of_a_job(pair: Namespaces, folder: Path) -> None:
    posts = tuple(f"POST {path}" for path in JOBS)
    with running(pair, SESSION, folder) as token:
        ports = pair.ports()
        assert {port.address for port in ports} == {"127.0.0.1"}
        assert {port.program for port in ports} >= {"gcs_server", "raylet", "ray::Worker", "ray::DashboardA"}

        # From another machine, even with the token.
        for known in ("", token):
            answers = pair.knock(pair.away, HOME, known, folder / "outsider")
            assert {(question, said) for _, question, said in answers} == {("connect", "refused")}

        # From another user of this machine.
        answers = pair.knock(pair.home, "127.0.0.1", "", folder / "neighbour")
        assert harmful(answers) == []
        assert statuses(answers, posts) == {key: {"401"} for key in posts}
        assert statuses(answers, READS) == {key: {"UNAUTHENTICATED"} for key in READS}
        assert not pair.drives(pair.home, f"127.0.0.1:{pair.gcs()}", "")

        # The same with the token: each attempt would work.
        answers = pair.knock(pair.home, "127.0.0.1", token, folder / "owner")
        assert statuses(answers, posts) == {key: {"200"} for key in posts}
        assert statuses(answers, READS) == {key: {"OK"} for key in READS}
        assert pair.drives(pair.home, f"127.0.0.1:{pair.gcs()}", token)
        await_that((folder / "owner").exists, lambda: "the owner's job did not run", 60)

        assert not (folder / "outsider").exists()
        assert not (folder / "neighbour").exists()
        assert pair.mentions(token) == []
        private = folder / f"ray-{os.getuid()}"
        assert private.stat().st_mode & 0o777 == 0o700
        names = {path.name for path in private.rglob("*") if path.is_socket()}
        assert names >= {"plasma_store", "raylet"}
        folder.chmod(0o755)  # as /tmp is to a neighbour
        assert [path for path in folder.rglob("*") if path.is_socket() and not hidden(path, folder)] == []
    said = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(said) > 10
    assert [path for path in said if token.encode() in path.read_bytes()] == []


def hidden(path: Path, below: Path) -> bool:
    """Whether some folder on the way from ``below`` lets nobody else in."""
    return any(not folder.stat().st_mode & 0o077 for folder in path.parents if below in folder.parents)


@pytest.mark.cluster
def test_a_cluster_serves_nobody_without_its_token(pair: Namespaces, folder: Path) -> None:
    """A cluster has to listen to its machines, so that only the token protects it from those that can reach it."""
    agent = f"POST {JOBS[0]}"
    remote = tuple(question for question in READS if "CoreWorker" not in question)  # no worker has started
    with running(pair, CLUSTER, folder) as token:
        answers = pair.knock(pair.away, HOME, "", folder / "outsider")
        assert harmful(answers) == []
        assert statuses(answers, (agent,)) == {agent: {"401"}}
        assert statuses(answers, remote) == {key: {"UNAUTHENTICATED"} for key in remote}
        assert (8265, "connect", "refused") in answers
        assert not pair.drives(pair.away, f"ray://{HOME}:10001", "")

        answers = pair.knock(pair.away, HOME, token, folder / "owner")
        assert statuses(answers, (agent,)) == {agent: {"200"}}
        assert statuses(answers, remote) == {key: {"OK"} for key in remote}
        client = f"ray://{HOME}:10001"  # which gives up on a slow machine after some seconds
        await_that(
            lambda: pair.drives(pair.away, client, token), lambda: "the owner's client did not connect"
        )
        await_that((folder / "owner").exists, lambda: "the owner's job did not run", 60)
        assert not (folder / "outsider").exists()
