"""Faces from Parquet to the network's input, a few steps ahead of training.

Reads follow the plan of the schedule: row groups by number, from files that the index names. A stream would be
faster to write and cannot be resumed at a step.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from facerec import seeding, storage
from facerec.models.images import REDUCED
from facerec.publish import Dataset
from facerec.schema import FACE_SIDE
from facerec.training.augment import DRAWS, AugmentConfig
from facerec.training.decoder import Job, Recipe
from facerec.training.index import FaceIndex
from facerec.training.processes import Processes
from facerec.training.schedule import Batch, Schedule

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


Make = Callable[[Iterable[Job]], Iterator[Tensor]]
"""Makes jobs in their order. A tensor may be overwritten after the next one has been asked for."""


@dataclass(frozen=True)
class Share:
    """One rank's part of one global batch; n faces of its own, b in all."""

    step: int
    images: Tensor
    """RGB uint8 [n, side, side, 3], a quarter of the network's input, which is made of one micro-batch at a time.
    With ``drawn`` they have the side at which they were decoded."""
    labels: NDArray[np.int64]
    """[b], of the global batch."""
    faces: NDArray[np.int64]
    """[b], ordinals of the global batch."""
    drawn: Tensor | None = None
    """[n, DRAWS] float64, by which the images have yet to be augmented (see augment_batch); None if they are."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Makes a rank's input of any step. Augmentation is seeded by (seed, step, micro-batch), not by rank."""

    store: FaceStore
    schedule: Schedule
    side: int
    augment: AugmentConfig | None
    seed: int
    processes: int = 0
    """How many processes decode and augment; 0 for a thread of this process."""
    pin: bool = False
    """Whether images lie in pinned memory, from which they go to a GPU beside its work."""
    decode_only: bool = False
    """Whether faces are only decoded, and the training process augments them by the numbers of the share."""

    def load(self, step: int, groups: range) -> Share:
        """The micro-batches ``groups`` of a step, made by the thread that calls."""
        return next(self._shares(range(step, step + 1), groups, self._in_this_thread))

    def ahead(self, steps: range, groups: range) -> Generator[Share, None, None]:
        """The same for steps in order, made while the caller trains: read by a thread, decoded there or in processes."""
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
            with contextlib.ExitStack() as stack:
                make: Make = self._in_this_thread
                if self.processes:
                    m = self.schedule.shape.micro_batch
                    make = stack.enter_context(Processes(self.processes, self._recipe, m)).map
                for share in self._shares(steps, groups, make):
                    if stopped.is_set():
                        return
                    made.put(share)
                    del share  # the queue's alone, so that no more than HELD are in memory
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that trains
            made.put(error)

    def _shares(self, steps: range, groups: range, make: Make) -> Iterator[Share]:
        """The shares of steps in order. Jobs are read ahead of the share that is being filled, as far as ``make`` asks."""
        to_read, batches = itertools.tee(map(self.schedule.batch, steps))
        faces = make(self._jobs(zip(steps, to_read, strict=True), groups))
        for step, batch in zip(steps, batches, strict=True):
            drawn = self._pinned_draws(step, groups) if self.decode_only else None
            yield Share(step, self._filled(len(groups), faces), batch.labels, batch.faces, drawn)

    def _jobs(self, batches: Iterable[tuple[int, Batch]], groups: range) -> Iterator[Job]:
        """A job for each micro-batch. The files of a share are read at once, each row group for all that it holds."""
        m = self.schedule.shape.micro_batch
        for step, batch in batches:
            jpegs = self.store.read(batch.faces[groups.start * m : groups.stop * m])
            for number, group in enumerate(groups):
                yield Job(jpegs[number * m : (number + 1) * m], self._draws(step, group))

    def _draws(self, step: int, group: int) -> NDArray[np.float64]:
        """[m, DRAWS]."""
        m = self.schedule.shape.micro_batch
        return seeding.generator(self.seed, "augment", step, group).random((m, DRAWS))

    def _pinned_draws(self, step: int, groups: range) -> Tensor:
        drawn = torch.from_numpy(np.concatenate([self._draws(step, group) for group in groups]))
        return drawn.pin_memory() if self.pin else drawn

    def _filled(self, groups: int, faces: Iterator[Tensor]) -> Tensor:
        """The next micro-batches in memory of their own. Copying leaves the interpreter to the thread that trains."""
        m = self.schedule.shape.micro_batch
        side = self._recipe.side
        images = torch.empty((groups * m, side, side, 3), dtype=torch.uint8, pin_memory=self.pin)
        for part in torch.split(images, m):
            part.copy_(next(faces))
        return images

    def _in_this_thread(self, jobs: Iterable[Job]) -> Iterator[Tensor]:
        side = self._recipe.side
        faces = np.empty((self.schedule.shape.micro_batch, side, side, 3), np.uint8)
        for job in jobs:
            self._recipe.make(job, faces)
            yield torch.from_numpy(faces)

    @property
    def _recipe(self) -> Recipe:
        whole = Recipe(self.side, self.augment)
        return decoding(whole) if self.decode_only else whole


def decoding(recipe: Recipe) -> Recipe:
    """The recipe without augmentation: faces stay at the side at which they are decoded and would be augmented."""
    sides = (FACE_SIDE // factor for factor in REDUCED)
    return Recipe(next((side for side in sides if side >= recipe.least), FACE_SIDE), None)


def _drain(made: queue.Queue[Share | BaseException]) -> None:
    while not made.empty():
        made.get_nowait()
