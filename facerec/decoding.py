"""Photographs opened and decoded: the one way in which every stage gets pixels from a file.

A photograph is decoded in a process of its own (pixels.py), one for each process that asks, which stays for the next
photograph. The kernel ends it when a photograph has taken ``SECONDS`` of CPU time, also within a decoder's C code, and
refuses memory beyond the budget; a decoder that crashes takes no actor with it. The child reads the file through its
parent, so a fault of the disk or the network is seen where the file was opened, and costs no CPU time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facerec import access, pixels, s3, schema, storage
from facerec.pixels import BUFFER, HELD_BYTES, Header, Rejected

MAX_FILE_BYTES = 256 * 2**20
"""A larger file is refused unread: no photograph is."""
SECONDS = 10
"""CPU time for one photograph. The slowest that the budgets of pixels.py allow take 2 to 5 s on a core of 2.5 GHz. It is
CPU time and not wall time, so neither a busy machine nor a slow disk or network turns into a fact about a photograph."""
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
"""How a decoder ends that a damaged file has led astray."""
File = io.BytesIO | io.BufferedReader


@contextlib.contextmanager
def opened(uri: str) -> Iterator[File]:
    """A photograph's bytes, as a file at its beginning. Raises Rejected.

    Faults of the environment, also those of reading within the block, pass as OSError, MemoryError or StorageError.
    """
    try:
        with access.of_one_photograph(uri), _regular(uri) as file:
            yield file
    except access.Unavailable as why:
        if "\\x" in uri:
            hint = "\\x stands for a byte that is not UTF-8: rename the file"
            raise Rejected("unreadable", f"{why}; {hint}") from None
        raise Rejected(schema.UNAVAILABLE, str(why)) from None


@contextlib.contextmanager
def _regular(uri: str) -> Iterator[File]:
    try:
        if not storage.is_s3(uri) and not stat.S_ISREG(os.stat(uri).st_mode):
            raise Rejected("unreadable", "a folder, pipe or device where a file is needed")
        with s3.refusals(uri), storage.open_input(uri) as file:
            if file.size() > MAX_FILE_BYTES:
                raise Rejected("too_large", f"{file.size():,} bytes; at most {MAX_FILE_BYTES:,} are read")
            held = file.size() <= HELD_BYTES
            yield io.BytesIO(file.read()) if held else io.BufferedReader(file, BUFFER)
    except ValueError as error:  # a name that no file can have
        raise Rejected("unreadable", f"{type(error).__name__}: {error}") from None


def decode(source: bytes | File) -> NDArray[np.uint8]:
    """Upright RGB uint8 [h, w, 3]; EXIF orientation is applied, alpha lies over white.

    Raises Rejected; OSError if the file cannot be read, or if the decoder's process is killed from outside.
    """
    return _decoder(os.getpid()).decode(source, None)[0]


def decode_reduced(source: bytes | File, longest: int) -> tuple[NDArray[np.uint8], int]:
    """As ``decode``, but a JPEG may come reduced, if still of ``longest`` pixels; and the longer side in the file.

    It takes a fraction of the time and memory of the whole.
    """
    image, header = _decoder(os.getpid()).decode(source, longest)
    return image, header.longest


@functools.cache
def _decoder(process: int) -> _Decoder:  # noqa: ARG001  # a forked process must not share its parent's
    return _Decoder()


class _Lost(Exception):  # noqa: N818
    """The decoder's process has ended before its answer."""


class _Decoder:
    """A child process that decodes, started when it is needed."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def decode(self, source: bytes | File, longest: int | None) -> tuple[NDArray[np.uint8], Header]:
        """The photograph, upright, and its header. Raises Rejected or OSError."""
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with self._lock:
            for last in (False, True):
                try:
                    return pixels.upright(self._answers(file, longest))
                except _Lost:
                    self._judge(last)
                except Rejected:
                    raise
                except BaseException:
                    self._end()  # it waits for a file that cannot be read
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _answers(self, file: File, longest: int | None) -> Iterator[Header | NDArray[np.uint8]]:
        child = self._child = self._child or _start()
        size, width = file.seek(0, io.SEEK_END), 0
        _send(child, json.dumps({"size": size, "longest": longest, "seconds": SECONDS}).encode() + b"\n")
        while "end" not in (answer := _message(child)):
            if "read" in answer:
                offset, length = answer["read"]
                file.seek(offset)
                data = file.read(length)
                _send(child, b"%d\n" % len(data), data)
            elif "rejected" in answer:
                raise Rejected(*answer["rejected"])
            elif "header" in answer:
                header = Header(**answer["header"])
                width = header.width
                yield header
            else:
                yield _strip(child, answer["rows"], width)

    def _judge(self, last: bool) -> None:
        """Say why the process has ended. Returns if trying again may help."""
        code = self._end()
        if code == -signal.SIGPROF:
            raise Rejected("too_large", f"it takes more than {SECONDS} s of CPU time to decode")
        if -code in CRASHES:
            raise Rejected("unreadable", f"the decoder crashes on it ({signal.Signals(-code).name})")
        if last:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise OSError(errno.ENOMEM, f"the decoder's process was ended twice ({how}): is memory short?")

    def _end(self) -> int:
        """End the process, and return its exit code."""
        child, self._child = self._child, None
        if child is None:
            return 0
        for stream in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(1)
        child.kill()
        return child.wait()


def _start() -> subprocess.Popen[bytes]:
    alone = {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-P", pixels.__file__]  # -P: its folder holds modules of ours, not of Python's
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | alone, bufsize=-1)
    except OSError as error:  # without its number, which would be taken for the photograph's
        raise OSError(f"the decoder cannot be started: {error.strerror}") from None


def _send(child: subprocess.Popen[bytes], *data: bytes) -> None:
    assert child.stdin
    try:
        for piece in data:
            child.stdin.write(piece)
        child.stdin.flush()
    except BrokenPipeError:
        raise _Lost from None


def _message(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert child.stdout
    line = child.stdout.readline()
    if not line.endswith(b"\n"):
        raise _Lost
    message: dict[str, Any] = json.loads(line)
    return message


def _strip(child: subprocess.Popen[bytes], rows: int, width: int) -> NDArray[np.uint8]:
    assert child.stdout
    strip = np.empty((rows, width, 3), np.uint8)
    view, filled = strip.data.cast("B"), 0
    while filled < len(view):
        if not (count := child.stdout.readinto(view[filled:])):  # type: ignore[attr-defined]
            raise _Lost
        filled += count
    return strip
