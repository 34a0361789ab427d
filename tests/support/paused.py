"""A run in a process of its own that stops itself (SIGSTOP) just before it changes something, as a suspended laptop does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pkgutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facerec import lock
from facerec.errors import FacerecError

LEASE = 1.5
"""Seconds: short, and long enough for a beat to come through on a busy machine."""


@dataclass(frozen=True)
class Point:
    """The call before which a run stops: the first of ``owner.verb`` with an argument that ends so."""

    owner: str
    """A module or class, as ``pkgutil.resolve_name`` takes it."""
    verb: str
    ending: str = ""
    """Of the call's first string argument; "" for any call."""

    def arm(self) -> None:
        """Stop this process once, when it comes to the point."""
        owner, met = pkgutil.resolve_name(self.owner), list[bool]()
        act = getattr(owner, self.verb)

        def stopping(*arguments: Any, **named: Any) -> Any:
            uris = [value for value in arguments if isinstance(value, str)] or [""]
            if not met and uris[0].endswith(self.ending):
                met.append(True)
                os.kill(os.getpid(), signal.SIGSTOP)
            return act(*arguments, **named)

        setattr(owner, self.verb, stopping)


@dataclass(frozen=True)
class Paused:
    """A run that has stopped."""

    process: Any
    answers: Any

    def wake(self) -> str:
        """Let it go on; gives how it ended: "done", or the name and text of the FacerecError that it met."""
        os.kill(self.process.pid, signal.SIGCONT)
        said = str(self.answers.get(timeout=120))
        self.process.join(60)
        return said


@contextlib.contextmanager
def paused(point: Point, run: Callable[..., object], *arguments: object) -> Iterator[Paused]:
    """The run of these arguments, once it has come to the point."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_run, args=(point, answers, run, arguments))
    process.start()
    try:
        until = time.monotonic() + 120
        while not _is_stopped(process.pid or 0):
            assert process.is_alive(), "the run ended before it came to the point"
            assert time.monotonic() < until, "the run did not come to the point"
            time.sleep(0.02)
        yield Paused(process, answers)
    finally:
        process.kill()
        process.join()


def _run(point: Point, answers: Any, run: Callable[..., object], arguments: tuple[object, ...]) -> None:
    lock.LEASE_SECONDS = LEASE
    point.arm()
    try:
        run(*arguments)
        answers.put("done")
    except FacerecError as error:
        answers.put(f"{type(error).__name__}: {error}")


def _is_stopped(process: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tT" in Path(f"/proc/{process}/status").read_text()
    return False
