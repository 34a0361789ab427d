"""Processes by their parents, for tests that kill."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SUBREAPER = 36
"""prctl's PR_SET_CHILD_SUBREAPER: what a killed process leaves becomes our child."""


def adopt_orphans() -> None:
    """From now on what a killed process leaves is our child, to be found, ended and reaped."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def reap(process: int) -> None:
    """Take a dead child's last word. Ray's workers end when their raylet's number is gone, so not before it is reaped."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process, os.WNOHANG)


def descendants(parent: int) -> Iterator[int]:
    """All processes below one, as far as they live while it looks."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from descendants(int(child))


def named(word: str) -> list[int]:
    """Our descendants that have the word in their command line."""
    found = []
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def await_that(holds: Callable[[], bool], said: Callable[[], str], limit_s: float = 240.0) -> None:
    """Return as soon as it holds; fail with what was ``said`` where that takes too long."""
    until = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until, said()
        time.sleep(0.2)


def runs(process: int) -> bool:
    """Whether the process lives: one that waits to be reaped does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def started(process: int) -> str | None:
    """When the process began, in the kernel's ticks, which tells it from a later one of the same number; None if it is gone."""
    if not runs(process):
        return None
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]


def kill_once(command: list[str], come: Callable[[], bool], limit_s: float = 240.0) -> None:
    """Start a job, SIGKILL it as soon as it has ``come`` so far, and wait until its children have gone too.

    Ray's agents are not waited for: they do nothing to the job, and take a minute to see that their raylet is dead.
    """
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + limit_s
    while not come():
        assert job.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < until, f"not so far in {limit_s} s"
        time.sleep(0.01)
    job.send_signal(signal.SIGSTOP)  # it does nothing more while its children are counted
    adopt_orphans()
    children = set(descendants(job.pid)) - set(named("Agent"))
    job.kill()
    job.wait(timeout=10)
    while left := [child for child in children if runs(child)]:
        assert time.monotonic() < until, f"{left} outlived the job"
        for child in children:
            reap(child)
        time.sleep(0.1)


def _begun_since(before: set[int]) -> set[int]:
    """Our descendants that are neither of these nor of theirs."""
    theirs = {child for process in before for child in descendants(process)}
    return set(descendants(os.getpid())) - before - theirs


@contextlib.contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """However the block ends, Ctrl-C and SIGTERM too: no process begun in it and no file in the folder outlives it."""
    adopt_orphans()
    before = set(descendants(os.getpid()))
    try:
        yield
    finally:
        while left := _begun_since(before):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        shutil.rmtree(folder, ignore_errors=True)
