"""A folder that only one run writes and that readers can trust: parts, a lock, and a manifest published last.

folder/
  manifest.json              the current generation; no manifest, no dataset
  parts/                     finished units of work, each one atomic file; a rerun skips them
  generations/0001-9f3c.../  the files of a generation, and a copy of its manifest

The name of a generation's folder has the id of the run that writes it, so no two runs ever write the same file there. The
manifest at the root is the only commit, and a conditional one: it replaces exactly the manifest that the run followed.
Its ``history`` says where the copies of the manifests are, so that a run can read the generation that it began on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import facerec
from facerec import documents, lock, s3, schema, storage
from facerec.errors import BusyError, DatasetError, FacerecError, MismatchError
from facerec.lock import Fence
from facerec.storage import Expected

PART_ROW_GROUP = 8
"""Rows of a row group of a part. Compaction reads the row groups that its faces lie in, all over the parts.

Rows read for one used, 100 people of 340 faces and 2,000 of 20: 8.0 and 2.5 with 32 rows, 4.8 and 1.3 with 8,
3.2 and 1.1 with 4. Each halving doubles the footer (40 KB of 3.7 MB with 8) and the time to read the columns.
"""
MADE_BY = {"names": "jobs/identify.py", "embeddings": "jobs/embed.py", "faces": "jobs/align.py"}
"""The job that publishes files of a kind; rejects and others lie beside files of these kinds."""
PART = Expected("remove it, and the same command makes it again")
"""Of a finished part nothing is known but the checksums of its pages."""
MANIFEST: documents.Shape = {
    "schema_version": int,
    "generation": int,
    "files": [{"path": str, "kind": str, "rows": int, "bytes": int, "sha256": str, "footer_sha256?": str}],
    "history": [{"generation": int, "path": str}],
    "preprocessing?": dict,
    "counts?": dict,
    "label_conflicts?": [{"source_hash": str, "identities": [str]}],
    "erased?": [{"generation": int, "digest": str}],
    "model_id?": str,
    "faces_digest?": (str, type(None)),
    "core_seconds?": (int, float),
}
"""What a manifest must be; jobs may say more in it."""
OF_A_GENERATION = re.compile(r"generations/\d{4,}-[0-9a-f]+/")
"""How the paths of a generation's files begin."""
CORE_SECONDS = b"core_seconds"
"""Key of a part's schema metadata."""
BARRED = {"schema_version": schema.VERSION, "generation": 0, "files": [], "history": []}
"""A manifest before the first generation: it stands where a run was taken over that may still try to publish."""


@contextlib.contextmanager
def exclusive(folder: str, what: str, lease: float | None = None) -> Iterator[Fence]:
    """Hold a folder that is published; raise BusyError if another run holds it. ``what`` is the flag that names it.

    If the block fails, the generation that it began goes, unless it was published.
    """
    with lock.exclusive(folder, what, lease, bar=_bar) as fence:
        try:
            yield fence
        except BaseException:
            with contextlib.suppress(FacerecError, OSError):
                _discard(fence)
            raise


def _bar(fence: Fence) -> None:
    """Write the manifest once more, with our name in it, so that the former holder of the lease can never replace it.

    That run may sleep just before its commit. From here on its generation is lost, and its files may go. Without a claim it
    has not begun one.
    """
    uri = _manifest_uri(fence.folder)
    while storage.exists(storage.join(fence.folder, "claim.json")):
        before = storage.version(uri)
        said = BARRED if before is None else _said(fence.folder)
        if storage.replace(uri, storage.json_bytes(said | {"writer": fence.run}), before):
            return


def claim(fence: Fence, settings: dict[str, Any], flag: str) -> None:
    """Make the folder ours, or confirm that it is: ``claim.json`` keeps the settings that decide its content.

    Raises MismatchError if it was begun with other settings, or if it holds foreign files. Temporary files of a killed
    write do not count as foreign.
    """
    if not claimed(fence.folder, settings, flag):
        write_claim(fence, settings)


def write_claim(fence: Fence, settings: dict[str, Any]) -> None:
    """Write ``claim.json``, without looking at what is there."""
    uri = storage.join(fence.folder, "claim.json")
    fence.write_json(uri, settings | {"schema_version": schema.VERSION})


def claimed(folder: str, settings: dict[str, Any], flag: str) -> bool:
    """Whether the folder is ours already; writes nothing.

    Raises MismatchError if it cannot become ours, and ConfigError if it cannot be written.
    """
    storage.require_writable(folder, flag)
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


class Manifest(dict[str, Any]):
    """What manifest.json says. A missing key raises DatasetError: the folder belongs to another job, or it is damaged."""

    def __init__(self, uri: str, said: dict[str, Any]) -> None:
        super().__init__(said)
        self._uri = uri

    def __missing__(self, key: str) -> Any:
        raise DatasetError(f"{self._uri} has no {key}: it is damaged, or the folder is that of another job")

    def __reduce__(self) -> Any:
        return Manifest, (self._uri, dict(self))


@dataclass(frozen=True)
class Dataset:
    """A published folder, as its manifest describes it: paths are relative to ``folder``."""

    folder: str
    manifest: dict[str, Any]

    @property
    def made_by(self) -> str:
        """The job that makes such a folder."""
        kinds = {file["kind"] for file in self.manifest["files"]}
        return next((job for kind, job in MADE_BY.items() if kind in kinds), MADE_BY["faces"])

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
        """A hash of all files' hashes: what a run pins. It does not depend on who wrote the files."""
        return hashlib.sha256("".join(file["sha256"] for file in self.manifest["files"]).encode()).hexdigest()

    def files(self, kind: str) -> list[str]:
        """Paths of one kind (faces, rejects, index, embeddings), in order."""
        return [file["path"] for file in self.manifest["files"] if file["kind"] == kind]

    def uris(self, kind: str) -> list[str]:
        """The same as full URIs."""
        return [storage.join(self.folder, path) for path in self.files(kind)]

    def uri(self, name: str) -> str:
        """Where a file is, by its name: the files of a generation may lie in several folders, after an erasure."""
        return storage.join(self.folder, self._entry(name)["path"])

    def expected(self, name: str) -> Expected:
        """What the manifest says of a file, by its name, path or URI, and what mends it."""
        entry = self._entry(name)
        known = (entry.get(name) for name in ("bytes", "sha256", "footer_sha256"))
        return Expected(f"remove it and run {self.made_by} again", *known)

    def read(self, kind: str, columns: list[str] | None = None) -> pa.Table:
        """All rows of one kind in one table: for tables that fit in memory. Raises DatasetError if a file is damaged."""
        return pa.concat_tables(self.tables(kind, columns))

    def tables(
        self, kind: str, columns: list[str] | None = None, *, repetitive: list[str] | None = None
    ) -> Iterator[pa.Table]:
        """The rows of each file of one kind, in order. Raises DatasetError if a file is damaged."""
        for uri in self.uris(kind):
            expected = self.expected(uri)
            yield storage.read_table(uri, columns, repetitive=repetitive, expected=expected)

    def rows(self, name: str, rows: NDArray[np.int64], columns: list[str] | None = None) -> pa.Table:
        """Rows of one file by their numbers, as storage.read_rows gives them."""
        return storage.read_rows(self.uri(name), rows, columns, self.expected(name))

    def lacking(self) -> list[str]:
        """URIs of files that are not there with their size; one listing for each folder."""
        folders = {path.rpartition("/")[0] for path in (file["path"] for file in self.manifest["files"])}
        sizes = {uri: size for at in folders for uri, size in storage.sizes(f"{self.folder}/{at}").items()}
        named = {storage.join(self.folder, file["path"]): file["bytes"] for file in self.manifest["files"]}
        return [uri for uri, size in named.items() if sizes.get(uri) != size]

    def _entry(self, name: str) -> dict[str, Any]:
        """Of a file's name, which is unique in a generation."""
        name = name.rsplit("/", 1)[-1]
        if name not in self._entries:
            raise DatasetError(f"{_manifest_uri(self.folder)} names no file {name}; {_mend(self.made_by)}")
        return self._entries[name]

    @functools.cached_property
    def _entries(self) -> dict[str, dict[str, Any]]:
        return {entry["path"].rsplit("/", 1)[-1]: entry for entry in self.manifest["files"]}


def open_dataset(folder: str, made_by: str, generation: int | None = None) -> Dataset:
    """The dataset that a folder's manifest describes; ``made_by`` names the job to run if there is none.

    ``generation`` is one that was published before, as long as the manifest still knows it.
    """
    folder = storage.absolute(folder)
    s3.require(folder)
    manifest = _said(folder, made_by or "its job")
    if manifest.get("schema_version", schema.VERSION) != schema.VERSION:
        raise DatasetError(
            f"{_manifest_uri(folder)} has schema version {manifest.get('schema_version')}, and this version of facerec "
            f"reads {schema.VERSION}; run {made_by} into a new folder"
        )
    if not manifest.get("generation"):
        found = "no manifest.json there" if storage.exists(folder) else "no such folder"
        raise DatasetError(f"{folder} is not a published dataset ({found}); run {made_by} first")
    if generation not in (None, manifest["generation"]):
        manifest = _earlier(folder, manifest, generation)
    return Dataset(folder, manifest)


def open_pinned(folder: str, made_by: str, pinned: dict[str, Any]) -> Dataset:
    """The dataset at the generation that a run began on (``generation`` and ``digest``).

    A later one of the same digest has the same files, as after a damaged one was published again. Otherwise raises
    DatasetError if the generation is gone; whoever pinned it compares the digest.
    """
    now = open_dataset(folder, made_by)
    return now if now.digest == pinned["digest"] else open_dataset(folder, made_by, pinned["generation"])


def finished(folder: str, **says: Any) -> bool:
    """Whether the current generation says so and all its files are there, with their sizes.

    If files are missing or have another size, it says which. The generation is published again then, from the parts.
    """
    manifest = current(folder)
    if not manifest or any(manifest.get(key) != value for key, value in says.items()):
        return False
    if lacking := Dataset(folder, manifest).lacking():
        print(
            f"WARNING: {lacking[0]} is missing or has another size than its manifest says ({len(lacking)} of "
            f"{len(manifest['files'])} files); all are published again",
            flush=True,
        )
    return not lacking


def _earlier(folder: str, manifest: dict[str, Any], generation: int | None) -> dict[str, Any]:
    for entry in manifest["history"]:
        if entry["generation"] == generation:
            with contextlib.suppress(FileNotFoundError):
                return _read_manifest(storage.join(folder, entry["path"]))
    raise DatasetError(f"{folder} has no generation {generation} any more")


def current(folder: str) -> dict[str, Any]:
    """The manifest of the current generation; empty if none was published yet."""
    said = _said(folder)
    return said if said.get("generation") else {}


def _said(folder: str, job: str = "its job") -> dict[str, Any]:
    uri = _manifest_uri(folder)
    return _read_manifest(uri, job) if storage.exists(uri) else {}


def _read_manifest(uri: str, job: str = "its job") -> dict[str, Any]:
    """A manifest that is what a manifest must be; of another schema version it may be anything."""
    try:
        said = storage.read_json(uri)
    except DatasetError as error:
        raise DatasetError(f"{error}; {_mend(job)}") from None
    if said.get("schema_version") != schema.VERSION:
        return said
    if found := fault(said):
        raise DatasetError(f"{uri} is damaged: {found}; {_mend(job)}")
    return Manifest(
        uri, {key: Manifest(uri, each) if isinstance(each, dict) else each for key, each in said.items()}
    )


def fault(said: Any, shape: documents.Shape = MANIFEST) -> str:
    """What is wrong with a manifest; empty if nothing is."""
    if found := documents.fault(said, shape):
        return found
    paths = [entry["path"] for entry in [*said["files"], *said.get("history", [])]]
    outside = [path for path in paths if path.startswith("/") or ".." in path.split("/")]
    return f"it names a file elsewhere, {outside[0]}" if outside else ""


def _mend(job: str) -> str:
    return f"restore it from a copy, or remove it and run {job} again"


def manifests(folder: str) -> list[dict[str, Any]]:
    """The manifests of all generations that are still there, oldest first, the current one last."""
    now = current(folder)
    copies = [storage.join(folder, entry["path"]) for entry in now.get("history", [])[:-1]]
    return [*(_read_manifest(uri) for uri in copies if storage.exists(uri)), now] if now else []


def _manifest_uri(folder: str) -> str:
    return storage.join(folder, "manifest.json")


@dataclass(frozen=True)
class Generation:
    """A generation that a run is writing. Small and picklable: Ray tasks write its files."""

    fence: Fence
    number: int
    before: str | None
    """Version of the manifest that it follows; None if there was none."""
    history: tuple[dict[str, Any], ...]
    """Of the manifest that it follows."""

    @property
    def base(self) -> str:
        """Its folder, relative to the dataset; nobody else writes there."""
        return f"generations/{self.number:04d}-{self.fence.run}"

    def write(
        self, name: str, kind: str, table: pa.Table, *, row_groups: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """Write a table and give its manifest entry; raises BusyError if the folder was lost."""
        path = f"{self.base}/{name}"
        data = storage.parquet(table, row_groups)
        written = self.fence.write(storage.join(self.fence.folder, path), data)
        footer = {"footer_sha256": storage.footer_sha256(data)}
        return {"path": path, "kind": kind, "rows": table.num_rows, **asdict(written), **footer}

    def publish(self, files: list[dict[str, Any]], about: dict[str, Any], *, alone: bool = False) -> Dataset:
        """Make the generation the current one: the last step of any writer. ``alone``: earlier ones are forgotten.

        Raises BusyError if another run has taken the folder over meanwhile. The commit is one conditional write: the
        manifest is still the one that was there when the generation began, or nothing is written.
        """
        folder, copy = self.fence.folder, f"{self.base}/manifest.json"
        history = [] if alone else list(self.history)
        manifest = about | {
            "schema_version": schema.VERSION,
            "code_version": facerec.__version__,
            "generation": self.number,
            "writer": self.fence.run,
            "history": [*history, {"generation": self.number, "path": copy}],
            "files": files,
        }
        self.fence.write_json(storage.join(folder, copy), manifest)
        lock.renew(folder)
        if not storage.replace(_manifest_uri(folder), storage.json_bytes(manifest), self.before):
            self.fence.require()
            raise BusyError(
                f"{folder}: its manifest was changed while generation {self.number} was written, which is not published; "
                "run the same command again"
            )
        return Dataset(folder, manifest)


def begin(fence: Fence) -> Generation:
    """The next generation of a folder. What killed runs left of theirs is removed."""
    before, said = storage.version(_manifest_uri(fence.folder)), current(fence.folder)
    lock.renew(
        fence.folder
    )  # what was read before is what this run follows, as it held the folder all the time
    sweep(fence)
    return Generation(fence, 1 + int(said.get("generation", 0)), before, tuple(said.get("history", [])))


def amend(fence: Fence, changes: dict[str, Any]) -> None:
    """Change what the manifest of the current generation says, in its copy too."""
    uri = _manifest_uri(fence.folder)
    before, said = storage.version(uri), current(fence.folder) | changes
    lock.renew(fence.folder)
    fence.write_json(storage.join(fence.folder, said["history"][-1]["path"]), said)
    if not storage.replace(uri, storage.json_bytes(said), before):
        fence.require()
        raise BusyError(f"{uri} was changed at the same time; run the same command again")


def sweep(fence: Fence) -> None:
    """Remove the files of generations that no manifest names, except for the files of this run.

    A run that was taken over may still be writing some of them: it cannot publish them any more (see ``_bar``). Folders
    that are not called as a generation is are not ours, and stay.
    """
    named = _named(fence.folder)
    for uri in storage.list_tree(storage.join(fence.folder, "generations")):
        path = uri.removeprefix(f"{fence.folder}/")
        if OF_A_GENERATION.match(path) and uri not in named and not _is_of(uri, fence):
            fence.remove(uri)


def _discard(fence: Fence) -> None:
    """Remove the files that a run has written into a generation that it did not publish."""
    ours = [uri for uri in storage.list_tree(storage.join(fence.folder, "generations")) if _is_of(uri, fence)]
    named = _named(fence.folder) if ours else set()
    for uri in ours:
        if uri not in named:
            storage.remove_file(uri)


def _is_of(uri: str, fence: Fence) -> bool:
    return f"-{fence.run}/" in uri.removeprefix(fence.folder)


def _named(folder: str) -> set[str]:
    """URIs of the files that the readable manifests name, and of the manifests' copies."""
    return {
        storage.join(folder, entry["path"])
        for manifest in manifests(folder)
        for entry in [*manifest["files"], *manifest["history"]]
    }


def write_part(
    fence: Fence, of: pa.Table, make: Callable[[], pa.Table], *, before_s: float = 0.0
) -> pa.Table:
    """The part that rows ``of`` name, made and written whole or not at all; gives one row of counts.

    ``of`` has the columns of schema.PHOTOGRAPHS, and face_id if a photograph's faces may lie in several parts. A part that
    is there already is not made again: after a node's death Ray Data asks again for what the node had finished but not
    reported. One in which photographs are unavailable is replaced. What making took is in the file's metadata, with
    ``before_s`` core-seconds spent elsewhere. Raises BusyError if the folder is another run's, and then leaves nothing.
    """
    named = _distinct(of, of.column_names)
    name = hashlib.blake2b("\n".join("\x1f".join(map(str, row)) for row in named).encode(), digest_size=12)
    uri = storage.join(fence.folder, "parts", f"part-{name.hexdigest()}.parquet")
    if storage.exists(uri):
        counts = _counts(storage.read_table(uri, expected=PART))
        if not counts["unavailable"][0].as_py():
            return counts
    began = time.monotonic()
    rows = make()
    told = {
        **(rows.schema.metadata or {}),
        CORE_SECONDS: f"{before_s + time.monotonic() - began:.3f}",
    }
    fence.write(uri, storage.parquet(rows.replace_schema_metadata(told), PART_ROW_GROUP))
    return _counts(rows)


def _distinct(rows: pa.Table, columns: list[str]) -> list[tuple[Any, ...]]:
    """What rows have in some columns, each once, in order."""
    return sorted(set(zip(*(rows[name].to_pylist() for name in columns), strict=True)), key=str)


def _counts(rows: pa.Table) -> pa.Table:
    """Photographs, their faces, and the photographs that gave none, also those that were unavailable.

    Faces left out of others are in no number.
    """
    counts = {"photographs": len(_distinct(rows, schema.PHOTOGRAPHS.names)), "faces": rows.num_rows}
    counts |= {"rejects": 0, "unavailable": 0}
    if "level" in rows.column_names:
        counts["faces"] = rows["level"].null_count
        counts["rejects"] = pc.sum(pc.equal(rows["level"], "image")).as_py() or 0
        counts["unavailable"] = pc.sum(pc.equal(rows["reason"], schema.UNAVAILABLE)).as_py() or 0
    return pa.table({name: [count] for name, count in counts.items()})


def parts(folder: str) -> list[str]:
    """The finished parts, sorted."""
    return storage.list_files(storage.join(folder, "parts"), ".parquet")


def core_seconds(part: pa.Table) -> float:
    """What a part took, by any of its columns as they were read; 0 where it does not say so."""
    return float((part.schema.metadata or {}).get(CORE_SECONDS, 0))
