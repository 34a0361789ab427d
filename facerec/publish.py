"""A folder that only one run writes and that readers can trust: parts, a lock, and a manifest published last.

folder/
  manifest.json          the current generation; no manifest, no dataset
  parts/                 finished units of work, each one atomic file; a rerun skips them
  generations/0001/      the files a generation's manifest names; a run pins the one it began on
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import facerec
from facerec import lock, s3, schema, storage
from facerec.errors import DatasetError, MismatchError
from facerec.lock import exclusive as exclusive

PART_ROW_GROUP = 8
"""Rows of a row group of a part. Compaction reads the row groups that its faces lie in, all over the parts.

Rows read for one used, 100 people of 340 faces and 2,000 of 20: 8.0 and 2.5 with 32 rows, 4.8 and 1.3 with 8,
3.2 and 1.1 with 4. Each halving doubles the footer (40 KB of 3.7 MB with 8) and the time to read the columns.
"""
CORE_SECONDS = b"core_seconds"
"""Key of a part's schema metadata."""


def claim(folder: str, settings: dict[str, Any], flag: str) -> None:
    """Make the folder ours, or confirm that it is: ``claim.json`` keeps the settings that decide its content.

    Raises MismatchError where it was begun with other settings, or where it holds foreign files; what a kill left of a
    write is none.
    """
    if not claimed(folder, settings, flag):
        storage.write_json(storage.join(folder, "claim.json"), settings | {"schema_version": schema.VERSION})


def claimed(folder: str, settings: dict[str, Any], flag: str) -> bool:
    """Whether the folder is ours already; writes nothing. Raises MismatchError where it cannot become ours."""
    uri = storage.join(folder, "claim.json")
    if storage.exists(uri):
        theirs = storage.read_json(uri)
        if (version := theirs.pop("schema_version", 1)) != schema.VERSION:
            raise MismatchError(
                f"{folder} was begun by another version of facerec: its rows have schema version {version}, and this "
                f"version writes {schema.VERSION}; choose another {flag}, or remove the folder"
            )
        differing = [
            key for key in sorted(settings.keys() | theirs.keys()) if settings.get(key) != theirs.get(key)
        ]
        if differing:
            key = differing[0]
            raise MismatchError(
                f"{folder} belongs to another run: {key} is {theirs.get(key)!r} there and {settings.get(key)!r} here; "
                f"choose another {flag} or the same settings"
            )
        return True
    if foreign := [uri for uri in storage.list_files(folder) if not uri.endswith((".lock", ".tmp"))]:
        raise MismatchError(
            f"{folder} holds {foreign[0].rsplit('/', 1)[-1]}, which is not ours; choose another {flag}"
        )
    return False


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
    s3.require(folder)
    below = [] if generation is None else ["generations", f"{generation:04d}"]
    uri = storage.join(folder, *below, "manifest.json")
    if not storage.exists(uri):
        found = "no manifest.json there" if storage.exists(folder) else "no such folder"
        raise DatasetError(f"{folder} is not a published dataset ({found}); run {made_by} first")
    manifest = storage.read_json(uri)
    if manifest.get("schema_version") != schema.VERSION:
        raise DatasetError(
            f"{uri} has schema version {manifest.get('schema_version')}, and this version of facerec reads {schema.VERSION}; "
            f"run {made_by} into a new folder"
        )
    return Dataset(folder, manifest)


def write(
    folder: str, path: str, kind: str, table: pa.Table, *, row_groups: Sequence[int] | None = None
) -> dict[str, Any]:
    """Write a generation's table and give its manifest entry; raises BusyError where the folder was lost."""
    lock.require_held(folder)
    written = storage.write_table(storage.join(folder, path), table, row_groups=row_groups)
    return {"path": path, "kind": kind, "rows": table.num_rows, **asdict(written)}


def publish(folder: str, generation: int, files: list[dict[str, Any]], about: dict[str, Any]) -> Dataset:
    """Write the generation's manifest, then make it the current one: the last step of any writer.

    Raises BusyError where another run has taken the folder over meanwhile.
    """
    lock.require_held(folder)
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


def write_part(folder: str, of: pa.Table, make: Callable[[], pa.Table], *, before_s: float = 0.0) -> pa.Table:
    """The part that rows ``of`` name, made and written whole or not at all; gives one row of counts.

    ``of`` has source_uri and identity, and face_id where a photograph's faces may lie in several parts. A part that is
    there already is not made again: after a node's death Ray Data asks anew for what the node had finished but not yet
    told. What making took stands in the file's metadata, with ``before_s`` core-seconds spent elsewhere.
    """
    named = _distinct(of, of.column_names)
    name = hashlib.blake2b("\n".join("\x1f".join(map(str, row)) for row in named).encode(), digest_size=12)
    uri = storage.join(folder, f"part-{name.hexdigest()}.parquet")
    if storage.exists(uri):
        return _counts(storage.read_table(uri))
    began = time.monotonic()
    rows = make()
    told = {
        **(rows.schema.metadata or {}),
        CORE_SECONDS: f"{before_s + time.monotonic() - began:.3f}",
    }
    storage.write_table(uri, rows.replace_schema_metadata(told), row_groups=PART_ROW_GROUP)
    return _counts(rows)


def _distinct(rows: pa.Table, columns: list[str]) -> list[tuple[Any, ...]]:
    """What rows have in some columns, each once, in order."""
    return sorted(set(zip(*(rows[name].to_pylist() for name in columns), strict=True)), key=str)


def _counts(rows: pa.Table) -> pa.Table:
    """Photographs, their faces, and the photographs that gave none; faces left out of others are in no number."""
    photographs, faces, rejects = len(_distinct(rows, schema.PHOTOGRAPHS.names)), rows.num_rows, 0
    if "level" in rows.column_names:
        faces = rows["level"].null_count
        rejects = pc.sum(pc.equal(rows["level"], "image")).as_py() or 0
    return pa.table({"photographs": [photographs], "faces": [faces], "rejects": [rejects]})


def parts(folder: str) -> list[str]:
    """The finished parts, sorted."""
    return storage.list_files(storage.join(folder, "parts"), ".parquet")


def core_seconds(part: pa.Table) -> float:
    """What a part took, by any of its columns as they were read; 0 where it does not say so."""
    return float((part.schema.metadata or {}).get(CORE_SECONDS, 0))


def current(folder: str) -> dict[str, Any]:
    """The manifest of the current generation; empty where none was published yet."""
    uri = storage.join(folder, "manifest.json")
    return storage.read_json(uri) if storage.exists(uri) else {}


def next_generation(folder: str) -> tuple[int, str]:
    """The number of the generation to be written and its place below the folder, which is empty then.

    What a run left there that was killed before it published, goes.
    """
    generation = 1 + int(current(folder).get("generation", 0))
    base = f"generations/{generation:04d}"
    storage.remove_tree(storage.join(folder, base))
    return generation, base
