"""One writer a folder: a file lock on disk, a lease in S3.

The lease is the object ``.lock``, taken, kept and taken over by conditional writes. Its holder writes it anew every
third of its length. Clocks are not compared: who finds a lease watches it for one length. If it does not change, its
holder is dead and the lease is taken over; if it does, the folder is busy.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import filelock
from botocore.exceptions import BotoCoreError, ClientError

from facerec import s3, storage
from facerec.errors import BusyError, ConfigError, StorageError

LEASE_SECONDS = 30.0

_leases: dict[str, _Lease] = {}
"""What this process holds, by folder: who publishes into it asks whether that is still so."""


@contextlib.contextmanager
def exclusive(folder: str, what: str, lease: float = LEASE_SECONDS) -> Iterator[None]:
    """Hold the folder; raise BusyError where another run holds it. ``what`` is the flag that names it.

    A dead run's file lock is free at once, its lease in S3 after ``lease`` seconds.
    """
    s3.require(folder)
    with _leased(folder, what, lease) if storage.is_s3(folder) else _locked(folder, what):
        yield


def require_held(folder: str) -> None:
    """Raise BusyError where a lease of this process has gone to another run; call it before what cannot be undone.

    It renews the lease, so that nobody can take it over for one length more.
    """
    if lease := _leases.get(folder):
        with s3.refusals(folder):
            lease.renew()


@contextlib.contextmanager
def _locked(folder: str, what: str) -> Iterator[None]:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}; choose another {what}") from None
    lock = filelock.FileLock(storage.join(folder, ".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BusyError(_busy(folder, "another run", what)) from None
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}; choose another {what}") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _leased(folder: str, what: str, seconds: float) -> Iterator[None]:
    lease = _Lease(folder, seconds)
    with s3.refusals(folder):
        lease.take(what)
    _leases[folder] = lease
    ended = threading.Event()
    beating = threading.Thread(target=lease.beat, args=(ended,), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        del _leases[folder]
        lease.release()


def _busy(folder: str, holder: str, what: str) -> str:
    return f"{folder} is being written by {holder}; wait for it or choose another {what}"


@dataclass(frozen=True)
class _Found:
    """A lease as it lies in S3."""

    etag: str
    mark: dict[str, Any]

    def __str__(self) -> str:
        who = (self.mark.get(name, "?") for name in ("host", "pid", "since"))
        return "another run ({}, process {}, since {})".format(*who)


class _Lease:
    """One folder's lease, as one run holds it; its threads share it."""

    def __init__(self, folder: str, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        bucket, key = s3.bucket_and_key(storage.join(folder, ".lock"))
        self._at = {"Bucket": bucket, "Key": key}
        self._mark: dict[str, Any] = {
            "beats": 0,
            "run": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        }
        self._etag = ""
        self._turn = threading.Lock()

    def take(self, what: str) -> None:
        """Take the lease, at once where there is none, after its length where its holder is dead."""
        while not self._put(IfNoneMatch="*"):
            if found := self._read():
                self._watch(found, what)
                if self._put(IfMatch=found.etag):
                    print(f"{self._folder}: taken over from {found}, which gave no sign of life", flush=True)
                    break
        if self._put(IfNoneMatch="*"):  # there is one now: ours
            raise StorageError(
                f"{self._folder}: the endpoint ignores If-None-Match; {s3.REMEDIES['notimplemented']}"
            )

    def renew(self) -> None:
        """Write our mark anew; raise BusyError where another run has taken the folder over."""
        with self._turn:
            # Twice, as a renewal whose answer was lost leaves a mark of ours that we do not know yet.
            if not (self._put(IfMatch=self._etag) or self._put(IfMatch=self._etag)):
                raise BusyError(
                    f"{self._folder}: this run gave no sign of life for {self._seconds:.0f} s and has lost the folder to "
                    f"{self._read() or 'another run'}; it publishes nothing, and the same command goes on from here"
                )

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
        """Give the lease back. Where that fails it goes stale by itself."""
        with self._turn, contextlib.suppress(BotoCoreError, ClientError):
            _client().delete_object(**self._at, IfMatch=self._etag)

    def _watch(self, found: _Found, what: str) -> None:
        """Return once the lease has lain unchanged for its length, or is gone; raise BusyError where it changes."""
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
        """Write our mark where the condition holds. A first try that held but was not answered counts as held."""
        self._mark["beats"] += 1
        body = json.dumps(self._mark).encode()
        try:
            self._etag = _client().put_object(**self._at, Body=body, **condition)["ETag"]
            return True
        except ClientError as error:
            if error.response["Error"]["Code"] not in _UNMET:
                raise
        found = self._read()
        if found is not None and found.mark.get("run") == self._mark["run"]:
            self._etag = found.etag
            return found.mark == self._mark
        return False

    def _read(self) -> _Found | None:
        mark: dict[str, Any] = {}
        try:
            answer = _client().get_object(**self._at)
            with contextlib.suppress(ValueError):  # a foreign file is watched like any lease
                mark = dict(json.loads(answer["Body"].read()))
            return _Found(answer["ETag"], mark)
        except _client().exceptions.NoSuchKey:
            return None


def _client() -> Any:
    return s3.client(attempts=4)  # some seconds: a lease is short


_UNMET = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey")
"""A condition that does not hold, or that was decided at the same moment for another, or an object that is gone."""
