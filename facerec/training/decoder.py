"""Faces of the network's size from JPEG bytes, and the loader process that makes them beside the training process.

A loader process imports neither torch nor Ray nor the main module of the training process, so it starts in a fraction
of a second and needs little memory. It reads jobs from a socket and writes faces into memory that it shares with the
training process (see processes.py). The socket ends with the training process, also when that is killed, and the
loader process ends with the socket.

Legend: m faces of a micro-batch, s image side.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import pickle
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection

import cv2
import numpy as np
from numpy.typing import NDArray

from facerec.models.images import decode_jpeg, resize
from facerec.training.augment import AugmentConfig, augment

Faces = NDArray[np.uint8]
"""RGB uint8 [m, s, s, 3]."""


@dataclass(frozen=True)
class Job:
    """One micro-batch to make."""

    jpegs: list[bytes]
    drawn: NDArray[np.float64]
    """[m, DRAWS], the random numbers of its augmentation."""


@dataclass(frozen=True)
class Recipe:
    """How JPEG bytes become faces. Pure: the result depends on the job alone, whichever process makes it."""

    side: int
    augment: AugmentConfig | None

    def make(self, job: Job, faces: Faces) -> None:
        """Write the faces of a job into ``faces``. Raises DatasetError where bytes cannot be decoded."""
        for number, (jpeg, drawn) in enumerate(zip(job.jpegs, job.drawn, strict=True)):
            faces[number] = self._face(jpeg, drawn)

    @property
    def least(self) -> int:
        """The pixels a side that the smallest crop needs, so that it is not enlarged."""
        return math.ceil(self.side / (1 - self.augment.crop if self.augment else 1))

    def _face(self, jpeg: bytes, drawn: NDArray[np.float64]) -> NDArray[np.uint8]:
        face = decode_jpeg(jpeg, self.least)
        if self.augment is None:
            return resize(face, self.side)
        return augment(face, self.side, self.augment, drawn)


@dataclass(frozen=True)
class Ring:
    """Places for micro-batches in a file of memory, which both processes map."""

    slots: int
    faces: int
    """m."""
    side: int

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Of the whole, uint8."""
        return self.slots, self.faces, self.side, self.side, 3

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return int(np.prod(self.shape))

    def mapped(self, file: int) -> NDArray[np.uint8]:
        """The file's memory, uint8 [slots, m, s, s, 3]."""
        return np.frombuffer(mmap.mmap(file, self.nbytes), np.uint8).reshape(self.shape)


def serve(wire: Connection, file: int) -> None:
    """Make the faces of each (slot, job) that comes, and answer None or the exception, until the other end is closed."""
    recipe, ring = wire.recv()
    slots = ring.mapped(file)
    while True:
        slot, job = wire.recv()
        try:
            recipe.make(job, slots[slot])
            answer = None
        except Exception as error:  # noqa: BLE001 - raised again in the process that asked
            answer = _portable(error)
        wire.send(answer)


def _portable(error: Exception) -> Exception:
    """The exception, or its name and text if it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its own code raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def main() -> None:
    """A loader process. Its arguments are the numbers of its socket and of the file of shared memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process decides when it ends
    cv2.setNumThreads(1)
    wire, file = (int(argument) for argument in sys.argv[1:])
    with contextlib.suppress(EOFError, ConnectionError):
        serve(Connection(wire), file)


if __name__ == "__main__":
    main()
