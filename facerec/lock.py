"""One writer per folder, and a fence that every change to a folder passes: a file lock on disk, a lease on S3.

The lease is the object ``.lock``. It is taken, kept and taken over by conditional writes; its holder writes it again
every third of its length. Clocks are not compared: a run that finds a lease watches it for one length. If the lease does
not change, its holder is dead and the lease is taken over; if it changes, the folder is busy.

A holder that was paused for longer than its lease is not dead. When it wakes, the folder belongs to another run, and it
must not change anything there. So each change is *fenced*: the file ``.lock`` names the run that holds the folder, and
every process of a run, its Ray workers too, reads that name before it writes or removes something (:class:`Fence`).

On disk, the kernel keeps the file lock as long as the process lives, also while it is stopped. There, the name protects
from workers that outlive their driver.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import filelock
import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError

from facerec import s3, storage
from facerec.errors import BusyError, ConfigError, StorageError
from facerec.storage import Written

LEASE_SECONDS = 30.0

_leases: dict[str, _Lease] = {}
"""The leases that this process holds, by folder."""


@dataclass(frozen=True)
class Fence:
    """One run's hold on a folder, as all its processes can check it. Small and picklable: it travels to Ray workers."""

    folder: str
    run: str
    """A random id, which ``.lock`` holds as long as the folder is this run's."""

    def require(self) -> None:
        """Raise BusyError unless the folder is still this run's; one read of ``.lock``."""
        found = _read(self.folder)
        if found is None or found.mark.get("run") != self.run:
            raise BusyError(_lost(self.folder, found))

    def write(self, uri: str, data: bytes | pa.Buffer) -> Written:
        """Write a file of the folder, whole or not at all; raise BusyError if the folder is another run's.

        A process may sleep between the check and the write. So the write has a condition: the file is what it was before
        the check. What another run has written meanwhile is never replaced, and a new file, which this run alone knows,
        is removed again if the folder was lost before it was there.
        """
        before = storage.version(uri)
        self.require()
        wrote = storage.replace(uri, data, before)
        if wrote is None:
            self.require()  # a twin of this worker, in the same run, has written the file
            return self.write(uri, data)
        try:
            self.require()
        except BusyError:
            if before is None:
                storage.remove_written(uri, wrote)
            raise
        return storage.written(data)

    def write_json(self, uri: str, value: Any) -> Written:
        """The same for a JSON document."""
        return self.write(uri, storage.json_bytes(value))

    def remove(self, uri: str) -> None:
        """Remove a file of the folder; raise BusyError if the folder is another run's."""
        self.require()
        storage.remove_file(uri)


@contextlib.contextmanager
def exclusive(
    folder: str, what: str, lease: float | None = None, bar: Callable[[Fence], None] | None = None
) -> Iterator[Fence]:
    """Hold the folder; raise BusyError if another run holds it. ``what`` is the flag that names the folder.

    The file lock of a dead run is free at once, its lease on S3 after ``lease`` seconds (LEASE_SECONDS). ``bar`` is called if the lease
    was taken over: its former holder may still live, and must not commit any more when it wakes.
    """
    s3.require(folder)
    seconds = LEASE_SECONDS if lease is None else lease
    with _leased(folder, what, seconds, bar) if storage.is_s3(folder) else _locked(folder, what) as fence:
        yield fence


def require_held(folder: str) -> None:
    """Raise BusyError if this process has lost its lease on the folder, or cannot know; cheap enough for every part.

    It asks S3 only if the last renewal is older than the lease. No other run can take the lease over earlier: it must
    first see the lease unchanged for its whole length, and it began to look after the last renewal had begun. The clock
    also counts the time for which a laptop was suspended. What commits, or removes, uses :func:`renew` or a Fence.
    """
    if lease := _leases.get(folder):
        with s3.refusals(folder):
            lease.require()


def renew(folder: str) -> None:
    """Renew the lease of this process now, which leaves its whole length for a commit; BusyError if it is lost."""
    if lease := _leases.get(folder):
        with s3.refusals(folder):
            lease.renew()


@contextlib.contextmanager
def _locked(folder: str, what: str) -> Iterator[Fence]:
    storage.require_writable(folder, what)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}; choose another {what}") from None
    path = storage.join(folder, ".lock")
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BusyError(_busy(folder, "another run", what)) from None
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}; choose another {what}") from None
    mark = _new_mark()
    try:
        _inscribe(path, json.dumps(mark))
        yield Fence(folder, mark["run"])
    finally:
        with contextlib.suppress(OSError, StorageError):
            _inscribe(path, "")
        lock.release()


def _inscribe(path: str, text: str) -> None:
    """Write into the lock file, which stays the same file: another one would not be locked."""
    with storage.writing(path), open(path, "r+") as file:
        file.truncate()
        file.write(text)


@contextlib.contextmanager
def _leased(folder: str, what: str, seconds: float, bar: Callable[[Fence], None] | None) -> Iterator[Fence]:
    lease = _Lease(folder, seconds)
    with s3.refusals(folder):
        took_over = lease.take(what)
    fence = Fence(folder, lease.run)
    if took_over and bar:
        bar(fence)  # if this fails, the lease is not given back: the next holder takes it over, and bars
    _leases[folder] = lease
    ended = threading.Event()
    beating = threading.Thread(target=lease.beat, args=(ended,), daemon=True)
    beating.start()
    try:
        yield fence
    finally:
        ended.set()
        beating.join()
        del _leases[folder]
        lease.release()


def _busy(folder: str, holder: str, what: str) -> str:
    return f"{folder} is being written by {holder}; wait for it or choose another {what}"


def _lost(folder: str, to: _Found | None) -> str:
    return (
        f"{folder}: this run gave no sign of life, or its driver has ended, and it has lost the folder to "
        f"{to or 'another run'}; it writes nothing more there, and the same command goes on from here"
    )


def _new_mark() -> dict[str, Any]:
    return {
        "run": uuid.uuid4().hex[:12],
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    }


@dataclass(frozen=True)
class _Found:
    """What ``.lock`` says."""

    etag: str
    mark: dict[str, Any]

    def __str__(self) -> str:
        who = (self.mark.get(name, "?") for name in ("host", "pid", "since"))
        return "another run ({}, process {}, since {})".format(*who)


def _read(folder: str) -> _Found | None:
    """What ``.lock`` says now; None if the folder is nobody's."""
    if storage.is_s3(folder):
        with s3.refusals(folder):
            return _read_lease(_lease_at(folder), s3.client())
    try:
        with open(storage.join(folder, ".lock"), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    return _Found("", _parsed(data)) if data else None


def _read_lease(at: dict[str, str], client: Any) -> _Found | None:
    try:
        answer = client.get_object(**at)
        return _Found(answer["ETag"], _parsed(answer["Body"].read()))
    except client.exceptions.NoSuchKey:
        return None


def _parsed(data: bytes) -> dict[str, Any]:
    """The mark; empty for a foreign file, which is watched as any lease is."""
    with contextlib.suppress(ValueError):
        mark = json.loads(data)
        if isinstance(mark, dict):
            return mark
    return {}


def _lease_at(folder: str) -> dict[str, str]:
    bucket, key = s3.bucket_and_key(storage.join(folder, ".lock"))
    return {"Bucket": bucket, "Key": key}


class _Lease:
    """One folder's lease, as one run holds it; its threads share it."""

    def __init__(self, folder: str, seconds: float) -> None:
        self._folder, self._seconds, self._at = folder, seconds, _lease_at(folder)
        self._mark: dict[str, Any] = {"beats": 0, **_new_mark()}
        self._etag = ""
        self._until = 0.0
        self._lost: BusyError | None = None
        self._turn = threading.Lock()

    @property
    def run(self) -> str:
        """The id of the run that holds it."""
        return str(self._mark["run"])

    def take(self, what: str) -> bool:
        """Take the lease, at once if there is none, after its length if its holder is dead: then give True."""
        took_over, began = False, _now()
        while not self._put(IfNoneMatch="*"):
            if found := self._read():
                self._watch(found, what)
                began = _now()
                if self._put(IfMatch=found.etag):
                    print(f"{self._folder}: taken over from {found}, which gave no sign of life", flush=True)
                    took_over = True
                    break
            began = _now()
        self._until = began + self._seconds
        if self._put(IfNoneMatch="*"):  # there is one now: ours
            raise StorageError(
                f"{self._folder}: the endpoint ignores If-None-Match; {s3.REMEDIES['notimplemented']}"
            )
        return took_over

    def require(self) -> None:
        """Raise BusyError if the lease is lost, or may be and S3 says that it is."""
        if self._lost:
            raise self._lost
        if _now() >= self._until:
            self.renew()

    def renew(self) -> None:
        """Write our mark again; raise BusyError if another run has taken the folder over."""
        with self._turn:
            began = _now()
            # Twice, as a renewal whose answer was lost leaves a mark of ours that we do not know yet.
            if not (self._put(IfMatch=self._etag) or self._put(IfMatch=self._etag)):
                self._lost = BusyError(_lost(self._folder, self._read()))
                raise self._lost
            self._until = began + self._seconds

    def beat(self, ended: threading.Event) -> None:
        """Renew every third of the lease until ``ended`` is set or the lease is lost."""
        while not ended.wait(self._seconds / 3):
            try:
                self.renew()
            except BusyError as error:
                print(f"WARNING: {error}", flush=True)
                return
            except (BotoCoreError, ClientError):
                continue  # the next one may come through in time

    def release(self) -> None:
        """Give the lease back. If that fails, it goes stale by itself."""
        with self._turn, contextlib.suppress(BotoCoreError, ClientError):
            _client().delete_object(**self._at, IfMatch=self._etag)

    def _watch(self, found: _Found, what: str) -> None:
        """Return once the lease has lain unchanged for its length, or is gone; raise BusyError if it changes."""
        print(
            f"{self._folder} is held by {found}; it is taken over if that gives no sign of life within {self._seconds:.0f} s",
            flush=True,
        )
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline:
            time.sleep(self._seconds / 30)
            now = self._read()
            if now is None:
                return
            if now.etag != found.etag:
                raise BusyError(_busy(self._folder, str(now), what))

    def _put(self, **condition: str) -> bool:
        """Write our mark if the condition holds. A first try that held but was not answered counts as held."""
        self._mark["beats"] += 1
        body = json.dumps(self._mark).encode()
        try:
            self._etag = _client().put_object(**self._at, Body=body, **condition)["ETag"]
            return True
        except ClientError as error:
            if error.response["Error"]["Code"] not in s3.UNMET:
                raise
        found = self._read()
        if found is not None and found.mark.get("run") == self._mark["run"]:
            self._etag = found.etag
            return found.mark == self._mark
        return False

    def _read(self) -> _Found | None:
        return _read_lease(self._at, _client())


def _now() -> float:
    """Seconds that also pass while the machine is suspended: on Linux the monotonic clock stands still then."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _client() -> Any:
    return s3.client(attempts=4)  # some seconds: a lease is short
