"""What became of every photograph: which part holds it, which is a copy of another, and what was rejected.

Parts hold at least one row a photograph, a face's or a reject's, of the columns that alignment's and embedding's parts
share. The driver holds all rows without images, as Arrow columns, so a million photographs are some hundred MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from facerec import publish, schema, storage
from facerec.errors import DatasetError
from facerec.photographs import digest, keys

I64 = NDArray[np.int64]


def missing(parts: list[str], photographs: pa.Table) -> pa.Table:
    """The listed photographs that no finished part holds, or only as unavailable."""
    listed, absent = keys(photographs), np.ones(photographs.num_rows, bool)
    for tables in storage.read_tables(parts, [*schema.PHOTOGRAPHS.names, "reason"], publish.PART):
        rows = pa.concat_tables(tables)
        done = keys(rows.filter(pc.invert(unavailable(rows))))
        absent &= ~pc.is_in(listed, value_set=done).to_numpy()
    return photographs.filter(absent)


def unavailable(rows: pa.Table) -> pa.ChunkedArray:
    """Which rows say that their photograph could not be opened [n]."""
    return pc.fill_null(pc.equal(rows["reason"], schema.UNAVAILABLE), False)


def say_unavailable(job: str, counts: dict[str, Any]) -> None:
    """Warn in one line where photographs could not be opened; ``counts`` are those of the manifest."""
    if number := counts["image_rejects"].get(schema.UNAVAILABLE):
        print(
            f"{job}: WARNING: {number} of {counts['photographs']} photographs could not be opened "
            f"(rejects with reason {schema.UNAVAILABLE}); the same command tries them again",
            flush=True,
        )


def is_current(folder: str, photographs: pa.Table) -> bool:
    """Whether the published generation was made of exactly these photographs, and its files are there."""
    return publish.finished(folder, listing=digest(photographs))


@dataclass(frozen=True)
class Account:
    """All photographs: each has a face or an image-level reject."""

    faces: pa.Table
    """One row a face, in the order of the photographs; ``photograph`` is the place in the listing, ``part`` and ``row``
    say where the face lies."""
    rejects: pa.Table
    """schema.REJECTS rows."""
    core_seconds: float
    """What making the parts took."""

    def counts(self, photographs: int, ignored: int) -> dict[str, Any]:
        """For the manifest, given how many photographs and other files were listed."""
        return {
            "photographs": photographs,
            "ignored_files": ignored,
            "photographs_with_faces": pc.count_distinct(self.faces["photograph"]).as_py(),
            "faces": self.faces.num_rows,
            "identities": pc.count_distinct(self.faces["identity"]).as_py(),
            "image_rejects": self.reasons("image"),
            "face_rejects": self.reasons("face"),
        }

    def reasons(self, level: str) -> dict[str, int]:
        """How many rejects of a level there are of each reason."""
        counted = self.rejects.filter(pc.equal(self.rejects["level"], level))["reason"].value_counts()
        return {count["values"]: count["counts"] for count in counted.to_pylist()}


def account(parts: list[str], photographs: pa.Table) -> Account:
    """What the parts hold of these photographs (schema.PHOTOGRAPHS, sorted).

    Raises DatasetError where one is neither among the faces nor among the rejects.
    """
    rows, seconds = _metadata(parts, photographs)
    faces, rejects = _without_duplicates(rows, photographs)
    pa.default_memory_pool().release_unused()
    _account_for_all(photographs.num_rows, faces, rejects)
    return Account(faces, rejects, seconds)


def _metadata(parts: list[str], photographs: pa.Table) -> tuple[pa.Table, float]:
    """Rows of all parts without images, in the order of their photographs, each of which counts in one part only;
    and the parts' core-seconds. A part in which a photograph is unavailable counts where there is no other.

    ``photograph`` is the place in the listing; ``part`` and ``row`` say where the row lies.
    """
    table, photograph, sizes, seconds = _matched(parts, photographs)
    pa.default_memory_pool().release_unused()
    part = np.repeat(np.arange(len(parts)), sizes)
    row = np.arange(len(part)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    order = np.lexsort((unavailable(table).to_numpy(), photograph))
    order = order[photograph[order] >= 0]
    place = photograph[order]
    first = np.searchsorted(place, place)
    order = order[part[order] == part[order][first]]
    table = table.take(order)
    places = {"photograph": photograph[order], "part": part[order], "row": row[order]}
    for name, values in places.items():
        table = table.append_column(name, pa.array(values))
    pa.default_memory_pool().release_unused()  # a third of a GB for a million photographs
    return table.append_column("identity", photographs["identity"].take(table["photograph"])), seconds


def _matched(parts: list[str], photographs: pa.Table) -> tuple[pa.Table, I64, I64, float]:
    """Rows of all parts without images and URIs; the photograph of each, -1 where none is listed; rows a part; core-seconds."""
    kept = ["source_hash", "face_id", "phash", "level", "reason", "detail"]
    tables = [pa.schema(map(schema.ALIGNED.field, kept)).empty_table()]
    found, sizes = np.zeros(0, np.int64), np.zeros(0, np.int64)
    listed, seconds = keys(photographs), 0.0
    for some in storage.read_tables(parts, [*schema.PHOTOGRAPHS.names, *kept], publish.PART):
        table = pa.concat_tables(some).combine_chunks()
        codes, held = numbered(keys(table))
        code = pc.index_in(listed, value_set=held).fill_null(-1).to_numpy()
        places = np.full(len(held), -1)
        places[code[code >= 0]] = np.flatnonzero(code >= 0)
        tables.append(table.select(kept))  # a million URIs would weigh as much as all the rest
        found = np.append(found, places[codes])
        sizes = np.append(sizes, [part.num_rows for part in some])
        seconds += sum(map(publish.core_seconds, some))
    return pa.concat_tables(tables), found, sizes, seconds


def gather(parts: list[str], faces: pa.Table, columns: list[str]) -> pa.Table:
    """Columns of faces, by ``part`` and ``row``, in order; raises DatasetError if they are not those of ``face_id``."""
    rows = storage.gather(parts, faces["part"].to_numpy(), faces["row"].to_numpy(), columns, publish.PART)
    if not pc.all(pc.equal(rows["face_id"], faces["face_id"])).as_py():
        raise DatasetError("a part was replaced while it was read; run the same command again")
    return rows


def _without_duplicates(rows: pa.Table, photographs: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Faces and schema.REJECTS rows; the same bytes and identity again is a duplicate of the first by URI."""
    photograph = rows["photograph"].to_numpy()
    original = _originals(rows)
    again, face = original != photograph, rows["reason"].is_null().to_numpy()
    lost = np.where(again, np.diff(photograph, prepend=-1) > 0, ~face)
    rejects, again_lost = rows.filter(lost), pa.array(again[lost])
    uris = photographs["source_uri"]
    same = pc.binary_join_element_wise("same bytes as", uris.take(original[lost]), " ")
    columns = {
        "level": pc.if_else(again_lost, "image", rejects["level"]),
        "source_uri": uris.take(rejects["photograph"]),
        "identity": rejects["identity"],
        "source_version": photographs["source_version"].take(rejects["photograph"]),
        "reason": pc.if_else(again_lost, "duplicate", rejects["reason"]),
        "detail": pc.if_else(again_lost, same, rejects["detail"]),
    }
    return rows.filter(~again & face), pa.table(columns, schema=schema.REJECTS)


def _originals(rows: pa.Table) -> I64:
    """For each row the first photograph of the same bytes and identity; its own where the bytes are unknown."""
    photograph, hashes = rows["photograph"].to_numpy(), numbered(rows["source_hash"])[0]
    identities, people = numbered(rows["identity"])
    _, first, back = np.unique(hashes * len(people) + identities, return_index=True, return_inverse=True)
    known = rows["source_hash"].is_valid().to_numpy()
    original: I64 = np.where(known, photograph[first][back], photograph)
    return original


def numbered(values: pa.ChunkedArray) -> tuple[I64, pa.Array]:
    """Each row's place among the distinct values, null too, which come in order of first appearance."""
    distinct = values.unique()
    return pc.index_in(values, value_set=distinct).to_numpy().astype(np.int64), distinct


def _account_for_all(listed: int, faces: pa.Table, rejects: pa.Table) -> None:
    used = pc.count_distinct(faces["photograph"]).as_py()
    lost = pc.sum(pc.equal(rejects["level"], "image")).as_py() or 0
    if used + lost != listed:
        raise DatasetError(
            f"{listed} photographs in, {used} with faces and {lost} rejected: a part is damaged or was removed"
        )
