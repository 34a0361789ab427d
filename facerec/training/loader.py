"""Faces from Parquet to the network's input, a few steps ahead of training.

Reads follow the plan of the schedule: row groups by number, from files that the index names. A stream would be
faster to write and cannot be resumed at a step.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from facerec import seeding, storage
from facerec.errors import DatasetError
from facerec.models.images import decode_jpeg, to_input
from facerec.publish import Dataset
from facerec.training.augment import AugmentConfig, augment
from facerec.training.index import FaceIndex
from facerec.training.schedule import Schedule

CACHE_BYTES = 256 * 2**20
"""JPEG bytes kept a worker: some 10,000 faces, so a small dataset is read once."""

AHEAD = 2
"""Steps decoded ahead: one in the making while another waits."""


class FaceStore:
    """JPEG bytes by ordinal, through whole row groups, the least recently used of which are dropped."""

    def __init__(self, dataset: Dataset, index: FaceIndex, cache_bytes: int = CACHE_BYTES) -> None:
        self._folder, self._index, self._budget = dataset.folder, index, cache_bytes
        self._files: dict[str, Any] = {}
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
        try:
            if file not in self._files:
                self._files[file] = pq.ParquetFile(storage.open_input(storage.join(self._folder, file)))
            table = self._files[file].read_row_group(group, columns=["image.bytes"])
        except (OSError, pa.ArrowException) as error:
            said = " ".join(str(error).split())
            raise DatasetError(
                f"{self._folder}/{file}, row group {group}: {said}; run jobs/align.py again"
            ) from error
        return pa.concat_arrays(table["image"].chunks).field("bytes")


@dataclass(frozen=True)
class Share:
    """One rank's part of one global batch; n faces of its own, b in all."""

    step: int
    images: Tensor
    """float32 [n, 3, side, side] in [-1, 1]."""
    labels: Tensor
    """int64 [b], of the global batch."""
    faces: Tensor
    """int64 [b], ordinals of the global batch."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Makes a rank's input of any step. Augmentation is seeded by (seed, step, micro-batch), not by rank."""

    store: FaceStore
    schedule: Schedule
    side: int
    augment: AugmentConfig | None
    seed: int

    def load(self, step: int, groups: range) -> Share:
        """The micro-batches ``groups`` of a step."""
        batch, m = self.schedule.batch(step), self.schedule.shape.micro_batch
        images = [
            self._micro_batch(step, group, batch.faces[group * m : (group + 1) * m]) for group in groups
        ]
        return Share(step, torch.cat(images), torch.from_numpy(batch.labels), torch.from_numpy(batch.faces))

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
            for step in steps:
                if stopped.is_set():
                    return
                made.put(self.load(step, groups))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that trains
            made.put(error)

    def _micro_batch(self, step: int, group: int, ordinals: NDArray[np.int64]) -> Tensor:
        faces = [decode_jpeg(jpeg) for jpeg in self.store.read(ordinals)]
        if self.augment is not None:
            random = seeding.generator(self.seed, "augment", step, group)
            faces = [augment(face, self.side, self.augment, random) for face in faces]
        return torch.cat([to_input(face[None], self.side) for face in faces])


def _drain(made: queue.Queue[Share | BaseException]) -> None:
    while not made.empty():
        made.get_nowait()
