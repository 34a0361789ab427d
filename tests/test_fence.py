"""A run that is paused (SIGSTOP), replaced and woken changes nothing of what now belongs to the other run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from facerec import lock, publish, storage
from facerec.errors import BusyError
from facerec.publish import Generation
from tests.support.aligner import FakeAligner, listing
from tests.support.faces import write_faces
from tests.support.paused import LEASE, Point, paused
from tests.support.s3 import Faults, s3_server

FOLDER = "s3://faces/work/set"
FIRST, SECOND = 3, 5
"""Rows that each run publishes."""

BEFORE_THE_GENERATION = Point("facerec.publish", "begin")
BEFORE_THE_MANIFEST = Point("facerec.publish:Generation", "publish")
AT_THE_COMMIT = Point("facerec.storage", "replace", "/set/manifest.json")
BEFORE_A_PART = Point("facerec.lock:Fence", "write", ".parquet")
AT_A_PART = Point("facerec.storage", "replace", ".parquet")


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    monkeypatch.setattr(lock, "LEASE_SECONDS", LEASE)
    with s3_server(monkeypatch.setenv) as faults:
        yield faults


def align(folder: str, rows: int) -> None:
    """What a job does: claim, a part, a generation."""
    with publish.exclusive(folder, "--out") as fence:
        publish.claim(fence, {"seed": 1}, "--out")
        photographs = listing(1, 2).photographs
        publish.write_part(fence, photographs, lambda: FakeAligner()(photographs))
        publish_rows(publish.begin(fence), rows)


def publish_rows(generation: Generation, rows: int) -> None:
    table = pa.table({"identity": ["Ada"] * rows})
    generation.publish([generation.write("faces-00000.parquet", "faces", table)], {"by": rows})


def require_whole(folder: str, rows: int) -> None:
    """The published dataset is that of the run of so many rows, complete, and nothing else is there."""
    dataset = publish.open_dataset(folder, "jobs/align.py")
    assert dataset.manifest["by"] == rows
    assert dataset.read("faces").num_rows == sum(file["rows"] for file in dataset.manifest["files"]) == rows
    there = set(storage.list_tree(f"{folder}/generations"))
    assert there == {*dataset.uris("faces"), f"{folder}/{dataset.manifest['history'][-1]['path']}"}


@pytest.mark.parametrize("point", [BEFORE_THE_GENERATION, BEFORE_THE_MANIFEST, AT_THE_COMMIT])
def test_a_paused_run_leaves_what_the_next_one_published(point: Point) -> None:
    with paused(point, align, FOLDER, FIRST) as first:
        align(FOLDER, SECOND)
        assert first.wake().startswith("BusyError")
    require_whole(FOLDER, SECOND)
    align(FOLDER, SECOND + 1)
    assert [entry["generation"] for entry in publish.current(FOLDER)["history"]] == [1, 2]


@pytest.mark.parametrize("generations", [0, 1])
def test_a_paused_run_cannot_commit_while_the_next_one_writes(generations: int) -> None:
    """Its files are gone by then, as nobody but it could have named them."""
    for _ in range(generations):
        align(FOLDER, 1)
    with paused(AT_THE_COMMIT, align, FOLDER, FIRST) as first:
        with publish.exclusive(FOLDER, "--out") as fence:
            second = publish.begin(fence)
            assert first.wake().startswith("BusyError")
            assert publish.current(FOLDER).get("by") == (1 if generations else None)
            publish_rows(second, SECOND)
        assert second.number == 1 + generations
    dataset = publish.open_dataset(FOLDER, "jobs/align.py")
    assert dataset.read("faces").num_rows == SECOND
    if generations:
        assert publish.open_dataset(FOLDER, "jobs/align.py", generation=1).read("faces").num_rows == 1


@pytest.mark.parametrize("point", [BEFORE_A_PART, AT_A_PART])
def test_a_paused_worker_brings_no_part_back_that_the_next_run_has_erased(point: Point) -> None:
    with paused(point, align, FOLDER, FIRST) as first:
        with publish.exclusive(FOLDER, "--out") as fence:
            for uri in publish.parts(FOLDER):
                fence.remove(uri)
            publish_rows(publish.begin(fence), SECOND)
            assert first.wake().startswith("BusyError")
        assert publish.parts(FOLDER) == []
    require_whole(FOLDER, SECOND)


def erase_somebody(root: str) -> None:
    from facerec.erasure.pipeline import EraseConfig, erase  # scikit-learn takes seconds to load

    erase(EraseConfig(identity="person-000", root=[root]))


@pytest.mark.parametrize(
    "point",
    [
        Point("facerec.publish:Generation", "publish"),  # before anything is purged
        Point("facerec.storage", "replace", "/faces/manifest.json"),
        Point("facerec.storage", "remove_file", ".parquet"),  # the purge
        Point("facerec.storage", "replace", "/run.json"),  # the name in a run's record
    ],
)
def test_a_paused_erasure_leaves_what_the_next_run_wrote(point: Point) -> None:
    root = "s3://faces/work"
    faces = write_faces(f"{root}/faces", 3, 2, side=32)
    run = {"split": {"train": ["person-000", "person-001"]}, "faces": {"digest": faces.digest}}
    storage.write_json(f"{root}/run/run.json", run)
    with paused(point, erase_somebody, root) as first:
        with publish.exclusive(f"{root}/faces", "--out") as fence:
            publish_rows(publish.begin(fence), SECOND)
        with lock.exclusive(f"{root}/run", "--run") as fence:
            fence.write_json(f"{root}/run/run.json", run | {"by": "the next run"})
        assert first.wake().startswith("BusyError")
    dataset = publish.open_dataset(f"{root}/faces", "jobs/align.py")
    assert dataset.manifest["by"] == dataset.read("faces").num_rows == SECOND
    assert storage.read_json(f"{root}/run/run.json") == run | {"by": "the next run"}


def test_of_two_commits_that_follow_one_manifest_one_is_refused(tmp_path: Path) -> None:
    """Whoever committed them: two manifests of one number are never both the current one."""
    for folder in (FOLDER, str(tmp_path / "set")):
        with publish.exclusive(folder, "--out") as fence:
            made = [publish.begin(fence), publish.begin(fence)]
            publish_rows(made[0], FIRST)
            with pytest.raises(BusyError, match="its manifest was changed while generation 1 was written"):
                publish_rows(made[1], SECOND)
        assert publish.current(folder)["by"] == FIRST


def test_a_stopped_process_keeps_its_folder_on_disk(tmp_path: Path) -> None:
    folder = str(tmp_path / "set")
    with paused(BEFORE_THE_MANIFEST, align, folder, FIRST) as first:
        with pytest.raises(BusyError, match="another run"):
            align(folder, SECOND)
        assert first.wake() == "done"
    require_whole(folder, FIRST)


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_a_worker_that_outlives_its_driver_writes_nothing(where: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "set") if where == "disk" else FOLDER
    with publish.exclusive(folder, "--out") as outlived:
        pass
    photographs = listing(1, 2).photographs
    for _ in range(2):
        with pytest.raises(BusyError, match="has lost the folder"):
            publish.write_part(outlived, photographs, lambda: FakeAligner()(photographs))
        assert publish.parts(folder) == []
        with publish.exclusive(folder, "--out"), pytest.raises(BusyError, match="process"):
            outlived.remove(f"{folder}/claim.json")


def test_a_check_for_each_part_asks_s3_only_if_the_lease_may_be_over(server: Faults) -> None:
    asked, moto = [], server.moto
    server.moto = lambda *request: (asked.append(request[0]["REQUEST_METHOD"]), moto(*request))[1]  # type: ignore[func-returns-value]
    with lock.exclusive(FOLDER, "--out", 600):
        before = len(asked)
        for _ in range(1000):
            lock.require_held(FOLDER)
        assert len(asked) == before
        lock._leases[FOLDER]._until = 0.0
        lock.require_held(FOLDER)
        assert asked[before:] == ["PUT"]


def test_a_lease_that_is_lost_is_known_without_asking(server: Faults) -> None:
    assert server
    with lock.exclusive(FOLDER, "--out", LEASE):
        storage.write_json(f"{FOLDER}/.lock", {"run": "another"})
        ended = threading.Event()
        while not lock._leases[FOLDER]._lost:
            ended.wait(0.05)
        with pytest.raises(BusyError, match="lost the folder to another run"):
            lock.require_held(FOLDER)
