"""From parts to a generation: duplicates and label conflicts found, faces laid out for training, manifest last.

Identities are cut into chunks and the chunks shuffled, so that any stretch of a shard holds many people, and
each of them several times: what a window of row groups needs to feed whole P x K batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from facerec import publish, schema, seeding, storage
from facerec.alignment.sources import Listing
from facerec.errors import DatasetError, SourceError

CHUNK = 16
"""Faces of one identity that lie together; a shorter rest stays with the chunk before it."""
ROW_GROUP = 256
"""Faces of a row group at least, where there are as many: it ends with the chunk that fills it."""
SHARD = 16
"""Row groups a file: about 100 MB at 25 KB a face."""

Row = dict[str, Any]
"""A face or reject without its image."""

Chunk = list[Row]

Where = tuple[int, int]
"""Part number and row within it."""


def compact(folder: str, listing: Listing, config: dict[str, Any], seed: int) -> publish.Dataset:
    """Write the next generation from all finished parts of photographs still listed, and publish it.

    Memory holds every row without its image, and the images of one shard.
    """
    parts = storage.list_files(storage.join(folder, "parts"), ".parquet")
    rows = _metadata(parts, listing.photographs)
    faces, rejects = _without_duplicates(rows)
    _account_for_all(listing.photographs.num_rows, faces, rejects)
    if not faces:
        reasons = dict(Counter(row["reason"] for row in rejects))
        raise SourceError(
            f"none of {listing.photographs.num_rows} photographs gave a face ({reasons}); see --detection.min_confidence"
        )
    generation = 1 + max(
        (int(uri.rsplit("/", 1)[1]) for uri in storage.list_folders(storage.join(folder, "generations"))),
        default=0,
    )
    base = f"generations/{generation:04d}"
    files, spans = [], []
    row_groups = list(_filled(_chunks(faces, seed), ROW_GROUP))
    for number, first in enumerate(range(0, len(row_groups), SHARD)):
        path, chosen = f"{base}/faces-{number:05d}.parquet", row_groups[first : first + SHARD]
        table = _gather(parts, [row["where"] for group in chosen for chunk in group for row in chunk])
        sizes = [sum(map(len, group)) for group in chosen]
        storage.write_table(storage.join(folder, path), table, row_groups=sizes)
        files.append(publish.describe(folder, path, "faces", table.num_rows))
        spans += list(_spans(path, chosen))
    tables = {
        "rejects": pa.Table.from_pylist(
            [{k: row[k] for k in schema.REJECTS.names} for row in rejects], schema=schema.REJECTS
        ),
        "index": pa.Table.from_pylist(spans, schema=schema.INDEX),
    }
    for kind, table in tables.items():
        storage.write_table(storage.join(folder, f"{base}/{kind}.parquet"), table)
        files.append(publish.describe(folder, f"{base}/{kind}.parquet", kind, table.num_rows))
    about = {
        "preprocessing": schema.Preprocessing().to_json(),
        "config": config,
        "counts": _counts(listing, faces, rejects),
        "label_conflicts": _label_conflicts(faces),
    }
    return publish.publish(folder, generation, files, about)


def _metadata(parts: list[str], photographs: pa.Table) -> list[Row]:
    """Rows of all parts without images, in source order, each with where it lies."""
    columns = [name for name in schema.ALIGNED.names if name not in ("image", "box", "landmarks", "blur")]
    listed = set(zip(photographs["source_uri"].to_pylist(), photographs["identity"].to_pylist(), strict=True))
    rows = []
    for number, uri in enumerate(parts):
        for row, values in enumerate(storage.read_table(uri, columns).to_pylist()):
            if (values["source_uri"], values["identity"]) in listed:
                rows.append({**values, "where": (number, row)})
    rows.sort(key=lambda row: (row["source_uri"], row["identity"] or "", row["where"]))
    return rows


def _without_duplicates(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Faces and rejects; the same bytes and identity again is a duplicate of the first by URI."""
    first: dict[tuple[str, str | None], str] = {}
    faces: list[Row] = []
    rejects: list[Row] = []
    seen: set[str] = set()
    for row in rows:
        key = (row["source_hash"], row["identity"])
        original = first.setdefault(key, row["source_uri"]) if row["source_hash"] else row["source_uri"]
        if original != row["source_uri"]:
            if row["source_uri"] not in seen:
                rejects.append(
                    {**row, "level": "image", "reason": "duplicate", "detail": f"same bytes as {original}"}
                )
            seen.add(row["source_uri"])
        else:
            (faces if row["reason"] is None else rejects).append(row)
    return faces, rejects


def _account_for_all(listed: int, faces: list[Row], rejects: list[Row]) -> None:
    used = len({(row["source_uri"], row["identity"]) for row in faces})
    lost = sum(row["level"] == "image" for row in rejects)
    if used + lost != listed:
        raise DatasetError(
            f"{listed} photographs in, {used} with faces and {lost} rejected: a part is damaged or was removed"
        )


def _chunks(faces: list[Row], seed: int) -> list[Chunk]:
    """Chunks of one identity in seeded shuffled order; within an identity, faces are shuffled too."""
    by_identity: dict[str, list[Row]] = {}
    for row in faces:
        by_identity.setdefault(row["identity"] or "", []).append(row)
    chunks = []
    for identity, rows in by_identity.items():
        order = seeding.generator("layout", seed, identity).permutation(len(rows))
        whole = max(1, len(rows) // CHUNK)
        chunks += [
            [rows[i] for i in order[n * CHUNK : (n + 1) * CHUNK if n + 1 < whole else None]]
            for n in range(whole)
        ]
    return [chunks[i] for i in seeding.generator("chunks", seed).permutation(len(chunks))]


def _filled(chunks: list[Chunk], size: int) -> Iterator[list[Chunk]]:
    """Consecutive chunks that together hold ``size`` rows or just more; the last ones may hold fewer."""
    group: list[Chunk] = []
    for chunk in chunks:
        group.append(chunk)
        if sum(map(len, group)) >= size:
            yield group
            group = []
    if group:
        yield group


def _gather(parts: list[str], where: list[Where]) -> pa.Table:
    """schema.FACES rows in the order asked for; each part is read once."""
    tables, position = [], np.empty(len(where), np.int64)
    filled = 0
    for part in sorted({number for number, _ in where}):
        at = [i for i, (number, _) in enumerate(where) if number == part]
        tables.append(
            storage.read_table(parts[part], schema.FACES.names).take(pa.array([where[i][1] for i in at]))
        )
        position[at] = np.arange(filled, filled + len(at))
        filled += len(at)
    return pa.concat_tables(tables).take(pa.array(position)).cast(schema.FACES)


def _spans(path: str, row_groups: list[list[Chunk]]) -> Iterator[Row]:
    """schema.INDEX rows: one a chunk."""
    for number, group in enumerate(row_groups):
        first = 0
        for chunk in group:
            yield {
                "identity": chunk[0]["identity"],
                "file": path,
                "row_group": number,
                "first_row": first,
                "rows": len(chunk),
            }
            first += len(chunk)


def _label_conflicts(faces: list[Row]) -> list[Row]:
    """The same bytes under two identities: one label is wrong, and only the user can say which."""
    table = pa.table(
        {"hash": [row["source_hash"] for row in faces], "identity": [row["identity"] or "" for row in faces]}
    )
    groups = table.group_by("hash").aggregate([("identity", "distinct")]).to_pylist()
    return [
        {"source_hash": g["hash"], "identities": sorted(g["identity_distinct"])}
        for g in groups
        if len(g["identity_distinct"]) > 1
    ]


def _counts(listing: Listing, faces: list[Row], rejects: list[Row]) -> dict[str, Any]:
    return {
        "photographs": listing.photographs.num_rows,
        "ignored_files": listing.ignored,
        "photographs_with_faces": len({(row["source_uri"], row["identity"]) for row in faces}),
        "faces": len(faces),
        "identities": len({row["identity"] for row in faces}),
        "image_rejects": dict(Counter(row["reason"] for row in rejects if row["level"] == "image")),
        "face_rejects": dict(Counter(row["reason"] for row in rejects if row["level"] == "face")),
    }
