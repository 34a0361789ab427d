"""One writer a folder, on disk and in S3: refused while it lives, replaced when it is dead."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pytest

from facerec import lock, publish
from facerec.errors import BusyError, ConfigError, StorageError
from tests.support.s3 import Fault, Faults, Respond, s3_server

LEASE = 3.0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    with s3_server(monkeypatch.setenv) as faults:
        yield faults


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path)
    request.getfixturevalue("server")
    return "s3://faces/set"


def _hold(folder: str, held: object, leave: object) -> None:
    with lock.exclusive(folder, "--faces", LEASE):
        held.set()  # type: ignore[attr-defined]
        leave.wait()  # type: ignore[attr-defined]


def test_the_second_writer_is_refused_and_a_killed_one_is_replaced(folder: str) -> None:
    context = multiprocessing.get_context("spawn")
    held, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(folder, held, leave))
    other.start()
    assert held.wait(60)
    for _ in range(2):
        with (
            pytest.raises(BusyError, match=r"another run.*choose another --faces"),
            lock.exclusive(folder, "--faces", LEASE),
        ):
            pass
    other.kill()
    other.join()
    with lock.exclusive(folder, "--faces", LEASE):
        pass
    with lock.exclusive(folder, "--faces", 600):  # given back: nothing to wait for
        pass


def test_of_many_writers_at_once_one_wins(server: Faults) -> None:
    assert server
    won, refused, decided = [], [], threading.Barrier(8)

    def run() -> None:
        try:
            with lock.exclusive("s3://faces/set", "--faces", LEASE):
                won.append(1)
                decided.wait(60)
        except BusyError as error:
            refused.append(str(error))
            decided.wait(60)

    runs = [threading.Thread(target=run) for _ in range(8)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)


def test_a_run_whose_answers_get_lost_knows_its_own_lease(server: Faults) -> None:
    server.due = [Fault("put", 500, late=True)]
    with lock.exclusive("s3://faces/set", "--faces", 60):
        assert not server.due
        server.due = [Fault("put", 500, late=True)]
        lock.require_held("s3://faces/set")
        lock.require_held("s3://faces/set")
    assert not _objects()


def _publish_when_told(folder: str, held: object, go: object, said: object) -> None:
    with publish.exclusive(folder, "--faces", LEASE) as fence:
        generation = publish.begin(fence)
        held.set()  # type: ignore[attr-defined]
        go.wait()  # type: ignore[attr-defined]
        for attempt in (
            lambda: generation.write("faces.parquet", "faces", pa.table({"a": [1]})),
            lambda: generation.publish([], {"by": "the paused run"}),
        ):
            try:
                said.put(str(attempt()))  # type: ignore[attr-defined]
            except BusyError as error:
                said.put(str(error))  # type: ignore[attr-defined]


def test_a_run_that_was_paused_and_replaced_publishes_nothing(
    server: Faults, capfd: pytest.CaptureFixture[str]
) -> None:
    assert server
    folder, context = "s3://faces/set", multiprocessing.get_context("spawn")
    held, go, said = context.Event(), context.Event(), context.Queue()
    paused = context.Process(target=_publish_when_told, args=(folder, held, go, said))
    paused.start()
    assert held.wait(60)
    os.kill(paused.pid or 0, signal.SIGSTOP)
    with publish.exclusive(folder, "--faces", LEASE) as fence:
        os.kill(paused.pid or 0, signal.SIGCONT)
        go.set()
        for _ in range(2):
            assert "lost the folder to another run" in said.get(timeout=60)
        made = publish.begin(fence)
        made.publish([], {"by": "the run that replaced it"})
        paused.join()
    assert publish.open_dataset(folder, "jobs/align.py").manifest["by"] == "the run that replaced it"
    assert _objects() == [f"set/{made.base}/manifest.json", "set/manifest.json"]
    printed = capfd.readouterr().out
    assert "it is taken over if that gives no sign of life within 3 s" in printed
    assert "taken over from another run" in printed


@pytest.mark.parametrize("ignores", [True, False])
def test_an_endpoint_without_conditional_writes_is_refused(server: Faults, ignores: bool) -> None:
    moto = server.moto

    def without(environ: dict[str, Any], respond: Respond) -> Any:
        if not environ.pop("HTTP_IF_NONE_MATCH", None) or ignores:
            return moto(environ, respond)
        respond("501 Not Implemented", [])
        return [b"<Error><Code>NotImplemented</Code></Error>"]

    server.moto = without
    with (
        pytest.raises(StorageError, match="needs an endpoint with conditional writes"),
        lock.exclusive("s3://faces/set", "--faces", LEASE),
    ):
        pass


def _objects() -> list[str]:
    return [entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket="faces").get("Contents", [])]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"file/out cannot be a folder: .*--out"),
        lock.exclusive(f"{tmp_path}/file/out", "--out"),
    ):
        pass
