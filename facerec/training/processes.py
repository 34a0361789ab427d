"""Loader processes: micro-batches made beside the training process, so that its interpreter is free to launch work.

Python's interpreter lock is held by a loader thread for a good part of its time, and each launch waits for it; a loader
process has a lock of its own. The processes are plain children (see decoder.py) and not those of multiprocessing: these
would import the main module of the training process again, which brings in Ray and torch, and a training process that
is killed would leave them behind.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from facerec.errors import ConfigError, ProcessError
from facerec.training import decoder
from facerec.training.decoder import Job, Recipe, Ring

SLOTS = 2
"""Micro-batches in flight per process: one that is made, and one that waits for the process or for the reader."""
PATIENCE_S = 5
"""For a child whose socket has closed to end."""


class Processes:
    """``count`` loader processes, which live until the block ends."""

    def __init__(self, count: int, recipe: Recipe, faces: int) -> None:
        """``faces`` is m, the number of faces of every job. Raises ProcessError if a process cannot be started."""
        self._ring = Ring(SLOTS * count, faces, recipe.side)
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._children: list[_Child] = []
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="loader")  # each waits for one process
        file = _memory()
        try:
            os.ftruncate(file, self._ring.nbytes)
            self._slots = torch.from_numpy(self._ring.mapped(file))
            for _ in range(count):
                self._children.append(_Child(file))
        except BaseException:
            self.close()
            raise
        finally:
            os.close(file)
        for child in self._children:
            child.begin(recipe, self._ring)
            self._idle.put(child)

    def map(self, jobs: Iterable[Job]) -> Iterator[Tensor]:
        """The faces of each job, uint8 [m, s, s, 3], in the order of the jobs. Some are made ahead.

        A tensor is overwritten after the next one has been asked for. Raises what a process raised, and ProcessError if
        one has ended.
        """
        waiting: deque[Future[Tensor]] = deque()
        for number, job in enumerate(jobs):
            if len(waiting) == self._ring.slots:
                yield waiting.popleft().result()
            waiting.append(self._threads.submit(self._made, number % self._ring.slots, job))
        while waiting:
            yield waiting.popleft().result()

    def _made(self, slot: int, job: Job) -> Tensor:
        child = self._idle.get()
        try:
            child.make(slot, job)
        finally:
            self._idle.put(child)
        return self._slots[slot]

    def close(self) -> None:
        """End the processes, also those that are at work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in self._children:
            child.kill()
        self._threads.shutdown()
        for child in self._children:
            child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


class _Child:
    """One loader process and the socket to it."""

    def __init__(self, file: int) -> None:
        try:
            self._wire, theirs = Pipe()
        except OSError as error:
            raise _not_started(error) from None
        with contextlib.closing(theirs):
            command = [sys.executable, "-P", "-m", decoder.__name__, str(theirs.fileno()), str(file)]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), file),
                    env=_environment(),
                    process_group=0,  # Ctrl-C is for the training process, which closes the socket
                )
            except OSError as error:
                self._wire.close()
                raise _not_started(error) from None

    def begin(self, recipe: Recipe, ring: Ring) -> None:
        """Say once what every job needs."""
        with contextlib.suppress(ConnectionError):  # the first job says so
            self._wire.send((recipe, ring))

    def make(self, slot: int, job: Job) -> None:
        """Return when the faces are in the slot. The interpreter lock is free while the process works."""
        try:
            self._wire.send((slot, job))
            answer: Exception | None = self._wire.recv()
        except (EOFError, ConnectionError):
            raise self._lost() from None
        if answer is not None:
            raise answer

    def _lost(self) -> ProcessError:
        try:
            code = self._process.wait(PATIENCE_S)
            how = f"signal {-code}; is memory short?" if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            how = "its socket was closed"
        return ProcessError(
            f"loader process {self._process.pid} has ended ({how}); the same command goes on from the last checkpoint; "
            "if it ends again, choose fewer (--loader_processes)"
        )

    def kill(self) -> None:
        """End the process; whoever waits for it is woken."""
        self._process.kill()

    def close(self) -> None:
        """Leave nothing of it behind."""
        self._process.wait()
        self._wire.close()


def _memory() -> int:
    """The number of a new file of shared memory. Raises ConfigError on a system that has none, as macOS."""
    if not hasattr(os, "memfd_create"):
        raise ConfigError(
            "loader processes need Linux; choose a thread of the training process (--loader_processes 0)"
        )
    try:
        return os.memfd_create("faces")
    except OSError as error:
        raise _not_started(error) from None


def _not_started(error: OSError) -> ProcessError:
    return ProcessError(
        f"a loader process cannot be started: {error.strerror}; choose fewer (--loader_processes)"
    )


def _environment() -> dict[str, str]:
    """This process's environment and module path, without the token of Ray, which a loader process does not talk to."""
    ours: dict[str, Any] = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    return ours | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
