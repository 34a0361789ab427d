"""Attacks on one writer per folder and on published data: paused runs that wake, killed writes, damaged bytes.

Each run that is paused stops itself (SIGSTOP) just before a change on S3. Another run takes the folder over and publishes;
then the first one goes on. An attack succeeds if anything of the second run's is changed or gone, or if rows are read that
nobody wrote.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from facerec import lock, publish, storage
from facerec.errors import DatasetError
from facerec.publish import Generation
from tests.bench.attacks import Attempt
from tests.support.aligner import FakeAligner, listing
from tests.support.paused import LEASE, Point, paused
from tests.support.s3 import Faults, s3_server

FIRST, SECOND = 3, 5
"""Rows that each run publishes."""
POINTS = {
    "before it begins a generation": Point("facerec.publish", "begin"),
    "between its shards and the manifest": Point("facerec.publish:Generation", "publish"),
    "at the commit of its manifest": Point("facerec.storage", "replace", "/set/manifest.json"),
    "at the write of a part": Point("facerec.storage", "replace", ".parquet"),
}
BYTES = 48 * 2**20
"""Of the object whose write is killed: more than the sockets between the processes hold."""


def attacks() -> Iterator[Attempt]:
    """All of them, on a server that speaks S3 in this process."""
    before, seconds = dict(os.environ), lock.LEASE_SECONDS
    lock.LEASE_SECONDS = LEASE
    try:
        for number, (when, point) in enumerate(POINTS.items()):
            with s3_server(os.environ.__setitem__):
                yield _wake(f"s3://faces/{number}/set", when, point)
        with s3_server(os.environ.__setitem__) as server:
            yield _kill_a_write(server)
    finally:
        lock.LEASE_SECONDS = seconds
        os.environ.clear()
        os.environ.update(before)
    yield from _damage()


def _run(folder: str, rows: int) -> None:
    """What a job does: claim, a part, a generation."""
    with publish.exclusive(folder, "--out") as fence:
        publish.claim(fence, {"seed": 1}, "--out")
        photographs = listing(1, 2).photographs
        publish.write_part(fence, photographs, lambda: FakeAligner()(photographs))
        _publish(publish.begin(fence), rows)


def _publish(generation: Generation, rows: int) -> None:
    table = pa.table({"identity": ["Ada"] * rows})
    generation.publish([generation.write("faces-00000.parquet", "faces", table)], {"by": rows})


def _wake(folder: str, when: str, point: Point) -> Attempt:
    """The second run also erases all parts, as an erasure does."""
    with paused(point, _run, folder, FIRST) as first:
        with publish.exclusive(folder, "--out") as fence:
            publish.claim(fence, {"seed": 1}, "--out")
            for uri in publish.parts(folder):
                fence.remove(uri)
            _publish(publish.begin(fence), SECOND)
        before = {uri: storage.read_bytes(uri) for uri in storage.list_tree(folder)}
        said = first.wake()
    after = {uri: storage.read_bytes(uri) for uri in storage.list_tree(folder)}
    what = f"a run that was paused {when} and replaced wakes"
    return Attempt(what, after != before or said == "done", said.partition(":")[0])


def _write_zeros(uri: str) -> None:
    storage.write_bytes(uri, bytes(BYTES))


def _kill_a_write(server: Faults) -> Attempt:
    uri = f"{server.bucket}/set/manifest.json"
    writer = multiprocessing.get_context("spawn").Process(target=_write_zeros, args=(uri,))
    server.on_body = lambda kind: os.kill(writer.pid or 0, signal.SIGKILL) if kind == "put" else None
    writer.start()
    writer.join(60)
    there = storage.list_tree(server.bucket)
    detail = f"the writer ended with {writer.exitcode}, {len(there)} objects"
    return Attempt("a process is killed while it writes an object", bool(there), detail)


def _damage() -> Iterator[Attempt]:
    """A byte of a shard changed, anywhere; and the shard cut off."""
    columns = ["face_id", "phash"]
    with tempfile.TemporaryDirectory() as folder:
        with publish.exclusive(folder, "--out") as fence:
            table = FakeAligner()(listing(10, 5).photographs).select([*columns, "image"])
            made = publish.begin(fence)
            dataset = made.publish([made.write("faces-00000.parquet", "faces", table)], {})
        path = Path(dataset.uris("faces")[0])
        good, wanted = path.read_bytes(), dataset.read("faces", columns)
        wrong = []
        for at in range(0, len(good), 11):
            path.write_bytes(good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :])
            wrong += _misread(dataset, columns, wanted, f"byte {at}")
        yield Attempt("a byte of a shard is changed", bool(wrong), ", ".join(wrong[:3]))
        wrong = []
        for size in range(0, len(good), 97):
            path.write_bytes(good[:size])
            wrong += _misread(dataset, columns, wanted, f"{size} bytes left")
        yield Attempt("a shard is cut off", bool(wrong), ", ".join(wrong[:3]))


def _misread(dataset: publish.Dataset, columns: list[str], wanted: pa.Table, what: str) -> list[str]:
    """What was read wrongly: other rows than ``wanted`` from some columns, or anything from the whole."""
    found = []
    with contextlib.suppress(DatasetError):
        if not dataset.read("faces", columns).equals(wanted):
            found.append(f"{what}: other rows")
    with contextlib.suppress(DatasetError):
        dataset.read("faces")
        found.append(f"{what}: not noticed")
    return found
