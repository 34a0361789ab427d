"""A folder that only one run writes and that readers can trust: parts, a lock, and a manifest published last.

folder/
  manifest.json          the current generation; no manifest, no dataset
  parts/                 finished units of work, each one atomic file; a rerun skips them
  generations/0001/      the files a generation's manifest names; a run pins the one it began on
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import filelock
import pyarrow as pa

import facerec
from facerec import schema, storage
from facerec.errors import BusyError, DatasetError, MismatchError


@contextlib.contextmanager
def exclusive(folder: str, what: str) -> Iterator[None]:
    """Hold the folder's lock; raise BusyError where another run holds it. A dead run's lock is free at once."""
    if storage.is_s3(folder):
        yield
        return
    os.makedirs(folder, exist_ok=True)
    lock = filelock.FileLock(storage.join(folder, ".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BusyError(
            f"{folder} is being written by another run; wait for it or choose another {what}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def claim(folder: str, settings: dict[str, Any], flag: str) -> None:
    """Make the folder ours, or confirm that it is: ``claim.json`` keeps the settings that decide its content.

    Raises MismatchError where it was begun with other settings, or where it holds foreign files.
    """
    uri = storage.join(folder, "claim.json")
    if storage.exists(uri):
        theirs = storage.read_json(uri)
        differing = [
            key for key in sorted(settings.keys() | theirs.keys()) if settings.get(key) != theirs.get(key)
        ]
        if differing:
            key = differing[0]
            raise MismatchError(
                f"{folder} belongs to another run: {key} is {theirs.get(key)!r} there and {settings.get(key)!r} here; "
                f"choose another {flag} or the same settings"
            )
        return
    if foreign := [uri for uri in storage.list_files(folder) if not uri.endswith(".lock")]:
        raise MismatchError(
            f"{folder} holds {foreign[0].rsplit('/', 1)[-1]}, which is not ours; choose another {flag}"
        )
    storage.write_json(uri, settings)


@dataclass(frozen=True)
class Dataset:
    """A published folder, as its manifest describes it: paths are relative to ``folder``."""

    folder: str
    manifest: dict[str, Any]

    @property
    def generation(self) -> int:
        """Counts up from 1 each time more was added."""
        return int(self.manifest["generation"])

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The contract its rows were made by."""
        return dict(self.manifest["preprocessing"])

    @property
    def digest(self) -> str:
        """A hash of all files' hashes: what a run pins."""
        return hashlib.sha256("".join(file["sha256"] for file in self.manifest["files"]).encode()).hexdigest()

    def files(self, kind: str) -> list[str]:
        """Paths of one kind (faces, rejects, index, embeddings), in order."""
        return [file["path"] for file in self.manifest["files"] if file["kind"] == kind]

    def uris(self, kind: str) -> list[str]:
        """The same as full URIs."""
        return [storage.join(self.folder, path) for path in self.files(kind)]

    def read(self, kind: str, columns: list[str] | None = None) -> pa.Table:
        """All rows of one kind in one table: for tables that fit in memory."""
        return pa.concat_tables(storage.read_table(uri, columns) for uri in self.uris(kind))


def open_dataset(folder: str, made_by: str, generation: int | None = None) -> Dataset:
    """The dataset that a folder's manifest describes; ``made_by`` names the job to run where there is none."""
    folder = storage.absolute(folder)
    below = [] if generation is None else ["generations", f"{generation:04d}"]
    uri = storage.join(folder, *below, "manifest.json")
    if not storage.exists(uri):
        found = "no manifest.json there" if storage.exists(folder) else "no such folder"
        raise DatasetError(f"{folder} is not a published dataset ({found}); run {made_by} first")
    manifest = storage.read_json(uri)
    if manifest.get("schema_version") != schema.VERSION:
        raise DatasetError(
            f"{uri} has schema version {manifest.get('schema_version')}; this code reads {schema.VERSION}"
        )
    return Dataset(folder, manifest)


def describe(folder: str, path: str, kind: str, rows: int) -> dict[str, Any]:
    """A manifest's entry for a file that was written."""
    data = storage.read_bytes(storage.join(folder, path))
    return {
        "path": path,
        "kind": kind,
        "rows": rows,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def publish(folder: str, generation: int, files: list[dict[str, Any]], about: dict[str, Any]) -> Dataset:
    """Write the generation's manifest, then make it the current one: the last step of any writer."""
    manifest = {
        "schema_version": schema.VERSION,
        "code_version": facerec.__version__,
        "generation": generation,
        "files": files,
        **about,
    }
    storage.write_json(storage.join(folder, "generations", f"{generation:04d}", "manifest.json"), manifest)
    storage.write_json(storage.join(folder, "manifest.json"), manifest)
    return Dataset(folder, manifest)


def write_part(rows: pa.Table, folder: str) -> pa.Table:
    """Write one part, whole or not at all, named by the photographs it holds; gives one row of counts.

    It lives on this floor because Ray runs it in processes of its own, which then need not load a detector.
    """
    photographs = list(zip(rows["source_uri"].to_pylist(), rows["identity"].to_pylist(), strict=True))
    name = hashlib.blake2b(
        "\n".join(f"{uri}\x1f{who}" for uri, who in photographs).encode(), digest_size=12
    ).hexdigest()
    storage.write_table(storage.join(folder, f"part-{name}.parquet"), rows)
    rejects = rows.num_rows - rows["reason"].null_count if "reason" in rows.column_names else 0
    return pa.table(
        {"photographs": [len(set(photographs))], "faces": [rows.num_rows - rejects], "rejects": [rejects]}
    )
