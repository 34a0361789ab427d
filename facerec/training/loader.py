"""Faces from Parquet to the network's input, a few steps ahead of training.

Reads follow the plan of the schedule: row groups by number, from files that the index names. A stream would be
faster to write and cannot be resumed at a step.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from facerec import seeding, storage
from facerec.models.images import decode_jpeg, resize
from facerec.publish import Dataset
from facerec.training.augment import DRAWS, AugmentConfig, augment
from facerec.training.index import FaceIndex
from facerec.training.schedule import Schedule

CACHE_BYTES = 2**30
"""JPEG bytes kept a worker: a window's row groups (see schedule), so that each is read once."""

OPEN_FILES = 64
"""Shards held open: each takes a descriptor, and some 180 KB for its footer."""
AHEAD = 2
"""Finished shares that wait in the queue."""
HELD = AHEAD + 2
"""Shares in memory at once: those in the queue, the one being made, and the one being trained on."""


class FaceStore:
    """JPEG bytes by ordinal, through whole row groups, the least recently used of which are dropped."""

    def __init__(self, dataset: Dataset, index: FaceIndex, cache_bytes: int = CACHE_BYTES) -> None:
        self._dataset, self._index, self._budget = dataset, index, cache_bytes
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], pa.Array] = OrderedDict()
        self._held = 0

    def read(self, ordinals: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        """The faces' JPEG bytes, in the order asked for. Raises DatasetError where a file cannot be read."""
        where = [self._index.locate(int(ordinal)) for ordinal in ordinals]
        jpegs: list[bytes] = [b""] * len(where)
        for position in sorted(
            range(len(where)), key=lambda i: where[i]
        ):  # each row group once, files in order
            file, group, row = where[position]
            jpegs[position] = self._row_group(file, group)[row].as_py() or b""
        return jpegs

    def _row_group(self, file: str, group: int) -> pa.Array:
        key = (file, group)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        self._groups[key] = images = self._load(file, group)
        self._held += images.nbytes
        while self._held > self._budget and len(self._groups) > 1:
            self._held -= self._groups.popitem(last=False)[1].nbytes
        return images

    def _load(self, file: str, group: int) -> pa.Array:
        uri, expected = self._dataset.uri(file), self._dataset.expected(file)
        with storage.trusting(uri, expected, f"row group {group}"):
            table = self._opened(file, uri, expected).read_row_group(group, columns=["image.bytes"])
        return pa.concat_arrays(table["image"].chunks).field("bytes")

    def _opened(self, file: str, uri: str, expected: storage.Expected) -> Any:
        if file in self._files:
            self._files.move_to_end(file)
        else:
            self._files[file] = storage.open_parquet(uri, expected)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close(force=True)
        return self._files[file]


@dataclass(frozen=True)
class Share:
    """One rank's part of one global batch; n faces of its own, b in all."""

    step: int
    images: Tensor
    """RGB uint8 [n, side, side, 3]: a quarter of what the network takes, made that a micro-batch at a time."""
    labels: NDArray[np.int64]
    """[b], of the global batch."""
    faces: NDArray[np.int64]
    """[b], ordinals of the global batch."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Makes a rank's input of any step. Augmentation is seeded by (seed, step, micro-batch), not by rank."""

    store: FaceStore
    schedule: Schedule
    side: int
    augment: AugmentConfig | None
    seed: int
    threads: int = 1
    """That decode and augment."""
    pin: bool = False
    """Whether images lie in pinned memory, from which they go to a GPU beside its work."""

    def load(self, step: int, groups: range, pool: Executor | None = None) -> Share:
        """The micro-batches ``groups`` of a step."""
        batch, m = self.schedule.batch(step), self.schedule.shape.micro_batch
        jpegs = self.store.read(batch.faces[groups.start * m : groups.stop * m])
        drawn = np.concatenate(
            [seeding.generator(self.seed, "augment", step, group).random((m, DRAWS)) for group in groups]
        )
        faces = (pool.map if pool else map)(self._face, jpegs, drawn)
        images = torch.from_numpy(np.stack(list(faces)))
        images = images.pin_memory() if self.pin else images
        return Share(step, images, batch.labels, batch.faces)

    def ahead(self, steps: range, groups: range) -> Generator[Share, None, None]:
        """The same for steps in order, made by a thread while the caller trains."""
        made: queue.Queue[Share | BaseException] = queue.Queue(maxsize=AHEAD)
        stopped = threading.Event()
        thread = threading.Thread(target=self._make, args=(steps, groups, made, stopped), daemon=True)
        thread.start()
        try:
            for _ in steps:
                item = made.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            while thread.is_alive():  # a maker that waits for room in the queue has to get it
                _drain(made)
                thread.join(timeout=0.05)

    def _make(
        self, steps: range, groups: range, made: queue.Queue[Share | BaseException], stopped: threading.Event
    ) -> None:
        try:
            with ThreadPoolExecutor(self.threads) as pool:
                for step in steps:
                    if stopped.is_set():
                        return
                    made.put(self.load(step, groups, pool if self.threads > 1 else None))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that trains
            made.put(error)

    def _face(self, jpeg: bytes, drawn: NDArray[np.float64]) -> NDArray[np.uint8]:
        face = decode_jpeg(jpeg)
        return (
            resize(face, self.side) if self.augment is None else augment(face, self.side, self.augment, drawn)
        )


def _drain(made: queue.Queue[Share | BaseException]) -> None:
    while not made.empty():
        made.get_nowait()
