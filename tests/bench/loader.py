"""`make bench-loader`: faces/s of the loader's thread and of its processes, and what launches cost beside each.

All ways are measured by turns in one run, and the figures are medians. Faces are drawn, 224 px, as JPEGs like those that
alignment writes. Time that a thread or process was ready to run and waited for a core is subtracted, because other work
on the machine causes it; waiting for a lock or for data stays in. Cores come from the CPU time of all processes.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from facerec.training.augment import AugmentConfig
from facerec.training.batches import BatchShape
from facerec.training.index import FaceIndex
from facerec.training.loader import FaceStore, Loader
from facerec.training.schedule import Schedule
from tests.bench.targets import Row, conclude
from tests.support.faces import write_drawn_faces
from tests.support.processes import descendants

SIDE, SHAPE = 224, BatchShape(p=16, k=4, micro_batch=64)
IMFDB = AugmentConfig(crop=0.1, rotation=10, colour=0.1, blur=0.1, low_resolution=0.2, occlusion=0.2)
"""Of jobs/presets/imfdb.yaml."""
WORK = {"augmented": IMFDB, "decoded": None}
GOAL = 5000
"""Faces/s that one H200 should be fed with."""
TURNS, TURN_S, LAUNCHES = 5, 0.8, 1000
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Turn:
    """What one turn measured, per face."""

    wall_s: float
    """Without the time that the decoding thread or processes waited for a core."""
    own_s: float
    """CPU time of the training process: with loader processes it only reads, sends and copies."""
    children_s: float

    @property
    def cpu_s(self) -> float:
        """CPU time of all processes."""
        return self.own_s + self.children_s


def main() -> None:
    """Measure every way, print, and exit 1 where a target is missed."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    processes = [0, *range(1, min(2, CORES) + 1)]
    with tempfile.TemporaryDirectory() as folder:
        make = _loaders(folder)
        equal = _are_equal(make)
        turns = _rates(make, processes)
        launches = _launch_prices(make)
    rows = [Row("bits equal to the thread's", equal, "", at_least=1)]
    for work in WORK:
        rows += _rows(work, {count: turns[work, count] for count in processes})
    conclude("bench-loader", rows + _launch_rows(launches), [f"on {CORES} cores"])


def _loaders(folder: str) -> Callable[[str, int], Loader]:
    faces = write_drawn_faces(folder, SHAPE.p, SHAPE.k, side=SIDE)
    index = FaceIndex.read(faces)
    schedule, store = Schedule(index, index.identities, SHAPE, 0), FaceStore(faces, index)

    def made(work: str, processes: int) -> Loader:
        return Loader(
            store=store, schedule=schedule, side=SIDE, augment=WORK[work], seed=0, processes=processes
        )

    return made


def _are_equal(make: Callable[[str, int], Loader]) -> bool:
    for work in WORK:
        by_thread, by_process = (
            [share.images for share in make(work, processes).ahead(range(3), range(SHAPE.groups))]
            for processes in (0, 1)
        )
        if not all(map(torch.equal, by_thread, by_process)):
            return False
    return True


def _rates(make: Callable[[str, int], Loader], processes: list[int]) -> dict[tuple[str, int], list[Turn]]:
    turns: dict[tuple[str, int], list[Turn]] = {}
    for _ in range(TURNS):
        for work in WORK:
            for count in processes:
                turns.setdefault((work, count), []).append(_turn(make(work, count)))
    return turns


def _turn(loader: Loader) -> Turn:
    """One turn, after the shares that were made while the processes started."""
    with contextlib.closing(loader.ahead(range(2**30), range(SHAPE.groups))) as shares:
        for _ in range(8):
            next(shares)
        own = [Path(f"/proc/self/task/{task}") for task in os.listdir("/proc/self/task")]
        children = [Path(f"/proc/{child}") for child in descendants(os.getpid())]
        before, began, faces = (_spent(own), _spent(children)), time.perf_counter(), 0
        while time.perf_counter() - began < TURN_S:
            faces += len(next(shares).images)
        wall = time.perf_counter() - began
        (own_s, own_waited), (children_s, waited) = (_spent(own) - before[0], _spent(children) - before[1])
        waited = waited / len(children) if children else own_waited
        return Turn((wall - waited) / faces, own_s / faces, children_s / faces)


def _spent(threads: list[Path]) -> NDArray[np.float64]:
    """Seconds on a core, and seconds ready to run without one, of all threads together (the kernel's schedstat)."""
    fields = [(thread / "schedstat").read_text().split()[:2] for thread in threads]
    return np.array(fields, float).reshape(-1, 2).sum(axis=0) / 1e9


def _launch_prices(make: Callable[[str, int], Loader]) -> dict[str, float]:
    """Median microseconds of a small operation: alone, beside the loader's thread, and beside one process."""
    beside: dict[str, int | None] = {"alone": None, "thread": 0, "process": 1}
    prices: dict[str, list[float]] = {way: [] for way in beside}
    launch = _launcher()
    for turn in range(TURNS + 1):
        for way, processes in beside.items():
            loading = (
                contextlib.nullcontext() if processes is None else _loading(make("augmented", processes))
            )
            with loading:
                until = time.perf_counter() + TURN_S
                while time.perf_counter() < until:
                    price = launch()
                    if turn:  # the first turn warms up
                        prices[way].append(price)
    return {way: statistics.median(seen) for way, seen in prices.items()}


def _launcher() -> Callable[[], float]:
    """A function that launches LAUNCHES operations on tensors so small that launching them is all the work."""
    layers = [torch.nn.Linear(4, 4) for _ in range(20)]
    rows, this_thread = torch.zeros(2, 4), [Path("/proc/thread-self")]

    def launch() -> float:
        before, began = _spent(this_thread), time.perf_counter()
        with torch.no_grad():
            for _ in range(LAUNCHES // len(layers)):
                made = rows
                for layer in layers:
                    made = layer(made)
        wall = time.perf_counter() - began
        return (wall - (_spent(this_thread) - before)[1]) / LAUNCHES * 1e6

    return launch


@contextlib.contextmanager
def _loading(loader: Loader) -> Iterator[None]:
    """A loader at full speed, whose shares a thread takes and drops."""
    stopped = threading.Event()
    shares = loader.ahead(range(2**30), range(SHAPE.groups))
    for _ in range(4):
        next(shares)

    def take() -> None:
        with contextlib.closing(shares):
            for _ in shares:
                if stopped.is_set():
                    return

    taker = threading.Thread(target=take)
    taker.start()
    try:
        yield
    finally:
        stopped.set()
        taker.join()


def _rows(work: str, turns: dict[int, list[Turn]]) -> list[Row]:
    """Rows of one kind of work; ``turns`` by the number of processes; 0 is the thread."""
    walls = {count: statistics.median(turn.wall_s for turn in seen) for count, seen in turns.items()}
    rows = []
    for count, wall in walls.items():
        name = f"{count} process{'es' if count > 1 else ''}" if count else "thread"
        cpu = statistics.median(turn.cpu_s for turn in turns[count])
        rows += [
            Row(f"{work} at {SIDE} px, {name}", 1 / wall, "faces/s"),
            Row("  faces/s per core, by CPU time", 1 / cpu, "faces/s"),
            Row("  a face", 1000 * cpu, "ms"),
        ]
    ratios = [thread.wall_s / process.wall_s for thread, process in zip(turns[0], turns[1], strict=True)]
    own, cpu = (
        GOAL * statistics.median(getattr(turn, name) for turn in turns[1]) for name in ("own_s", "cpu_s")
    )
    return [
        *rows,
        Row("  1 process over the thread", statistics.median(ratios), "x", at_least=0.9),
        Row(f"  cores for {GOAL:,} faces/s", cpu, "cores", at_most=8 if WORK[work] else 4),
        Row("    the training process's part of them", own, "cores"),
    ]


def _launch_rows(prices: dict[str, float]) -> list[Row]:
    slower = {way: 100 * (price / prices["alone"] - 1) for way, price in prices.items()}
    return [
        Row(f"a launch, of {LAUNCHES:,}: alone", prices["alone"], "us"),
        Row("  beside the loader's thread, slower by", slower["thread"], "%"),
        Row(
            "  beside a loader process, slower by", slower["process"], "%", at_most=10 if CORES > 1 else None
        ),
    ]


if __name__ == "__main__":
    main()
