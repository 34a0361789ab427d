"""`make bench-schedule`: the plan of batches for 10^8 faces of 10^6 people and 64 workers, as one worker makes it.

A whole epoch is planned by a process of its own from an index.parquet laid out as compaction lays it out; faces are
not read. Row groups read are counted as the worker's store would read them: each once in the steps of a window.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facerec import schema, storage
from facerec.alignment.compaction import CHUNK, SHARD, row_groups
from facerec.training.batches import BatchShape
from facerec.training.index import FaceIndex
from facerec.training.schedule import Schedule
from tests.bench.targets import Row, conclude, megabytes

IDENTITIES, FACES, WORKERS = 10**6, 10**8, 64
SHAPE = BatchShape(p=1024, k=4, micro_batch=64)
"""4,096 faces a batch in 64 micro-batches: one a worker, where most is read for the least use."""


def main() -> None:
    """Plan an epoch for equal and for uneven numbers of faces, print, and exit 1 where a target is missed."""
    rows = []
    for what, spread in (("100 faces each", 0.0), ("log-normal, sigma 0.8", 0.8)):
        with tempfile.TemporaryDirectory() as folder:
            index = Path(folder, "index.parquet")
            write_index(index, spread)
            command = [sys.executable, "-m", "tests.bench.schedule", str(index)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows += rows_of(what, json.loads(done.stdout.splitlines()[-1]))
    notes = [
        f"{IDENTITIES:,} people, {FACES:,} faces, {WORKERS} workers, batches of {SHAPE.p} x {SHAPE.k}",
        "plan a step is the mean over an epoch, index, windows and the epoch's order included; reads are of worker 0",
        "off their due: faces shown in the epoch against the share of them that is due",
    ]
    conclude("bench-schedule", rows, notes)


def rows_of(what: str, seen: dict[str, float]) -> list[Row]:
    """One set's measured values beside the targets."""
    return [
        Row(f"{what}: plan a step", seen["milliseconds"], "ms", at_most=5),
        Row("  slowest step (opens a window or an epoch)", seen["slowest"], "ms"),
        Row("  memory of the worker's plan at its most", seen["megabytes"], "MB", at_most=1024),
        Row("  bytes read / bytes used, a worker", seen["read"], "x", at_most=2.2),
        Row("  most off their due in the epoch", seen["off"], "faces", at_most=SHAPE.k),
        Row("  an identity twice in a batch", seen["met"], "times"),
    ]


def write_index(path: Path, spread: float) -> None:
    """schema.INDEX as compaction writes it: chunks of one identity, shuffled, in row groups of whole chunks."""
    random = np.random.default_rng(0)
    faces = np.exp(spread * random.standard_normal(IDENTITIES))
    faces = np.maximum(2, np.rint(faces * FACES / faces.sum())).astype(np.int64)
    chunks = np.maximum(1, faces // CHUNK)
    identity = np.repeat(np.arange(IDENTITIES), chunks)
    rows = np.full(len(identity), CHUNK)
    rows[np.cumsum(chunks) - 1] = faces - (chunks - 1) * CHUNK
    order = random.permutation(len(identity))
    identity, rows = identity[order], rows[order]
    group, first = row_groups(rows)
    names = pa.array([f"person-{number:07d}" for number in range(IDENTITIES)])
    files = pa.array([f"faces-{number:05d}.parquet" for number in range(group[-1] // SHARD + 1)])
    columns = {
        "identity": names.take(pa.array(identity)),
        "file": files.take(pa.array(group // SHARD)),
        "row_group": pa.array(group % SHARD, pa.int32()),
        "first_row": pa.array(first, pa.int32()),
        "rows": pa.array(rows, pa.int32()),
    }
    pq.write_table(pa.table(columns, schema=schema.INDEX), path)


def plan_an_epoch(path: str) -> None:
    """What the process of its own does; prints one line of JSON."""
    before, started = megabytes("VmRSS"), time.perf_counter()
    index = FaceIndex(storage.read_table(path, repetitive=["identity", "file"]))
    schedule = Schedule(index, index.identities, SHAPE, seed=0)
    planning = time.perf_counter() - started
    shown, slowest, met, step = np.zeros(IDENTITIES, np.int64), 0.0, 0, 0
    reads: list[int] = []
    window, groups, own = schedule._window, set[int](), range(SHAPE.micro_batch)
    while schedule.epoch(step) == 0:
        began = time.perf_counter()
        batch = schedule.batch(step)
        took = time.perf_counter() - began
        planning, slowest = planning + took, max(slowest, took)
        if schedule._window != window:
            reads.append(len(groups))
            window, groups = schedule._window, set()
        spans = np.searchsorted(index.starts, batch.faces[own], side="right") - 1
        groups |= set(index.groups[spans].tolist())
        met += SHAPE.p - len(set(batch.labels.tolist()))
        np.add.at(shown, batch.labels, 1)
        step += 1
    due = index.faces / index.faces.sum() * shown.sum()
    row_group = index.faces.sum() / (index.groups.max() + 1)
    seen = {
        "milliseconds": 1000 * planning / step,
        "slowest": 1000 * slowest,
        "megabytes": megabytes("VmHWM") - before,
        "read": (sum(reads) + len(groups)) * row_group / (step * SHAPE.micro_batch),
        "off": float(np.abs(shown - due).max()),
        "met": met,
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    plan_an_epoch(sys.argv[1]) if len(sys.argv) > 1 else main()
