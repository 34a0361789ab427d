"""Which faults are facts about one photograph, and which are faults of the environment.

A photograph that is not there, or that may not be read, is unavailable: a reject that the next run tries again. A disk,
mount, network or memory that fails says nothing about the photograph: what failed is tried again after growing pauses,
and then the job stops.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pyarrow as pa

from facerec import s3, storage
from facerec.errors import StorageError

T = TypeVar("T")

PAUSES = (0.5, 2.0, 5.0)
"""Seconds before the second, third and fourth attempt. S3 is asked again by its own client."""
SAMPLE = 64
"""Photographs, evenly spread over a listing, that are tried before access to all of them counts as lost."""
OF_ONE_FILE = frozenset(
    [errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOKEY]
)
"""Errors of a file that is not there or may not be read. All others of a disk are faults of the environment."""
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)


class Unavailable(Exception):  # noqa: N818  # an outcome that is counted, not an error
    """This photograph cannot be opened now; the message says why."""


@contextlib.contextmanager
def of_one_photograph(uri: str) -> Iterator[None]:
    """Raise Unavailable for what concerns this photograph alone; faults of the environment pass as they are."""
    try:
        yield
    except StorageError as refused:
        if refused.code not in s3.OF_ONE_OBJECT:
            raise
        raise Unavailable(str(refused).removeprefix(f"{uri}: ")) from None
    except OSError as error:
        if error.errno in OF_ONE_FILE:
            raise Unavailable(os.strerror(error.errno)) from None
        if not isinstance(error, FileNotFoundError):
            raise
        raise Unavailable(str(error)) from None  # an S3 key that Arrow cannot spell


def retried(attempt: Callable[[], T], uri: str) -> T:
    """What ``attempt`` returns; called again if the environment fails. Raises StorageError after the last attempt.

    An OSError or MemoryError that leaves ``attempt`` is a fault of the environment: see ``of_one_photograph``.
    """
    for pause in PAUSES:
        try:
            return attempt()
        except (OSError, MemoryError):
            time.sleep(pause)
    try:
        return attempt()
    except (OSError, MemoryError) as fault:
        raise StorageError(
            f"{uri} cannot be read: {_said(fault)}; the same command continues from here"
        ) from None


def _said(fault: OSError | MemoryError) -> str:
    attempts = f"{len(PAUSES) + 1} attempts"
    number = getattr(fault, "errno", None)
    if isinstance(fault, MemoryError) or number == errno.ENOMEM:
        why = getattr(fault, "strerror", None) or "no memory is left"
        return f"{why} ({attempts}); free some memory, or use fewer workers (--actors)"
    said = os.strerror(number) if number else " ".join(str(fault).split())[:200]
    if number in OUT_OF_FILES:
        return f"{said} ({attempts}); raise the limit of open files (ulimit -n)"
    return f"{said} ({attempts}); check the disk, mount or network, or move the file out of the source"


def require_some(photographs: pa.Table, flag: str) -> None:
    """Raise StorageError if not one of ``SAMPLE`` photographs of a listing can be opened: access to all of them is lost."""
    uris = photographs["source_uri"]
    tried = sorted({at * len(uris) // SAMPLE for at in range(SAMPLE)})
    first = ""
    for at in tried:
        uri = uris[at].as_py()
        try:
            return retried(functools.partial(_read_first, uri), uri)
        except Unavailable as why:
            first = first or f"{uri}: {why}"
    raise StorageError(
        f"none of {len(tried)} photographs that were tried, of {len(uris)} listed, can be opened ({first}); "
        f"mount their folder, or correct the paths or permissions of {flag}"
    )


def _read_first(uri: str) -> None:
    """Begin to read; a folder or pipe is there, whatever can be read from it. Raises Unavailable."""
    with of_one_photograph(uri):
        if storage.is_s3(uri):
            s3.begin(uri)
        elif stat.S_ISREG(_mode(uri)):
            with storage.open_input(uri) as file:
                file.read(1)


def _mode(uri: str) -> int:
    try:
        return os.stat(uri).st_mode
    except ValueError as error:  # a name that no file can have
        raise Unavailable(str(error)) from None
