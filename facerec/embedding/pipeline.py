"""The embedding stage over published faces: faces in, unit vectors out, as Ray Data over parts.

A part is some hundred faces of one shard, and one atomic file of vectors, which its actor reads, embeds and writes: a
stage of its own for reading or writing would keep a core of a small cluster. Finished parts are known by the faces that
they hold, so a run killed anywhere goes on, and a later generation of the faces costs only its new ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facerec import lock, nodes, pool, publish, schema, storage
from facerec.embedding.config import EmbedConfig
from facerec.embedding.embedder import (
    RowEmbedder,
    Stamp,
    about,
    checked_card,
    claimed,
    how,
)
from facerec.errors import DatasetError
from facerec.lock import Fence
from facerec.telemetry import Prometheus

COLUMNS = [*schema.PHOTOGRAPHS.names, "face_id", "image", "phash", "box", "confidence"]
ADDRESS = ["source_uri", "source_version"]
"""Columns of a vector that may change while its face stays the same, as when a photograph is moved or touched."""
PART = 512
"""Faces a part, the unit of work that a kill can lose."""


def embed_faces(config: EmbedConfig) -> publish.Dataset:
    """Embed the faces that are not embedded yet and publish. Raises before any work where things do not fit."""
    faces = publish.open_dataset(config.faces, "jobs/align.py")
    card = checked_card(config, faces.preprocessing, f"the faces {config.faces}")
    out = storage.absolute(config.out)
    pool.require_gpu(config)
    with publish.exclusive(out, "--out") as fence:
        config = claimed(out, config, card, {"faces": faces.folder}, fence)
        nodes.require_shared(out, faces.folder, storage.absolute(config.model))
        if publish.finished(out, faces_digest=faces.digest):
            print(f"embed: {config.out}: finished already", flush=True)
            return publish.open_dataset(out, "jobs/embed.py")
        shards = _face_ids(faces)
        held = Held.read(publish.parts(out))
        missing = [
            pa.table({"shard": [uri] * len(rows), "row": rows})
            for uri, ids in shards.items()
            for rows in _cut(np.flatnonzero(~held.holds(ids)))
        ]
        stamp = Stamp(
            model_id=card.model_id,
            preprocessing_id=card.preprocessing_id,
            faces_generation=faces.generation,
        )
        if missing:
            pool.say_if_waiting(config, "embed")
        done, total = 0, sum(part.num_rows for part in missing)
        print(f"embed: {faces.manifest['counts']['faces']} faces, {total} to embed", flush=True)
        gauges, began = Prometheus("facerec_embed", out), time.monotonic()
        with nodes.NodeSeconds() as spent:
            for part in _written(fence, faces, missing, config, stamp):
                lock.require_held(out)
                done += part["faces"]
                print(f"embed: {done}/{total} faces", flush=True)
                rate = done / (time.monotonic() - began)
                gauges.write({"faces": done, "faces_left": total - done, "faces_per_s": rate})
        if total:
            print(f"embed: {spent.of(total, 'faces')}", flush=True)
        return _publish(fence, faces, shards, about(config, card))


def plan_faces(config: EmbedConfig) -> dict[str, object]:
    """What embed_faces would do, for people; raises what it would, and writes nothing."""
    faces = publish.open_dataset(config.faces, "jobs/align.py")
    card = checked_card(config, faces.preprocessing, f"the faces {config.faces}")
    out = storage.absolute(config.out)
    config = claimed(out, config, card, {"faces": faces.folder})
    held = Held.read(publish.parts(out))
    missing = sum(int((~held.holds(ids)).sum()) for ids in _face_ids(faces).values())
    return {
        "faces": f"{faces.manifest['counts']['faces']:,} in {config.faces}, generation {faces.generation}",
        "to embed": f"{missing:,} faces in parts of up to {PART}",
        **how(config, card),
    }


def _face_ids(faces: publish.Dataset) -> dict[str, pa.ChunkedArray]:
    """The faces of each shard, in order."""
    uris = faces.uris("faces")
    expected = [faces.expected(uri) for uri in uris]
    tables = (table for some in storage.read_tables(uris, ["face_id"], expected) for table in some)
    return {uri: table["face_id"] for uri, table in zip(uris, tables, strict=True)}


def _cut(rows: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    for at in range(0, len(rows), PART):
        yield rows[at : at + PART]


class Held:
    """The faces that finished parts hold, where each lies, and what the parts took."""

    def __init__(self, parts: list[str], tables: list[pa.Table]) -> None:
        self._parts = parts
        none = pa.chunked_array([], pa.string())
        self._ids = pa.chunked_array(
            [chunk for table in tables for chunk in table["face_id"].chunks] or none.chunks, pa.string()
        )
        sizes = [table.num_rows for table in tables]
        self._part = np.repeat(np.arange(len(parts)), sizes)
        self._row = np.concatenate([np.zeros(0, np.int64), *(np.arange(size) for size in sizes)])
        self.core_seconds = sum(map(publish.core_seconds, tables))

    @classmethod
    def read(cls, parts: list[str]) -> Held:
        """Of these parts."""
        return cls(
            parts, [table for some in storage.read_tables(parts, ["face_id"], publish.PART) for table in some]
        )

    def holds(self, ids: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether there is a vector of each face."""
        return np.asarray(pc.is_in(ids, value_set=self._ids), bool)

    def gather(self, ids: pa.ChunkedArray) -> pa.Table:
        """schema.EMBEDDINGS rows of these faces, in order; raises DatasetError where one is missing."""
        place = pc.index_in(ids, value_set=self._ids)
        if place.null_count:
            raise DatasetError(
                f"{place.null_count} of {len(ids)} faces are in no part: a part was removed meanwhile; the same command makes them"
            )
        at = place.to_numpy()
        names = schema.EMBEDDINGS.names
        rows = storage.gather(self._parts, self._part[at], self._row[at], names, publish.PART)
        if not pc.all(pc.equal(rows["face_id"], ids)).as_py():
            raise DatasetError("a part was replaced while it was read; run the same command again")
        return rows


def _written(
    fence: Fence, faces: publish.Dataset, parts: list[pa.Table], config: EmbedConfig, stamp: Stamp
) -> Iterator[dict[str, Any]]:
    """Embed and write part by part; yields the counts of each as it is finished."""
    yield from pool.worked(config, parts, ShardEmbedder, (config, stamp, fence, faces))


class ShardEmbedder:
    """The job's actor: reads a part's faces, embeds them and writes the vectors."""

    def __init__(self, config: EmbedConfig, stamp: Stamp, fence: Fence, faces: publish.Dataset) -> None:
        self._embed, self._fence, self._faces = RowEmbedder(config, stamp), fence, faces

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A packed part, rows of one shard by its URI (``shard``) and their numbers (``row``), to one row of counts."""
        began, part = time.monotonic(), pool.unpacked(batch)
        faces = self._faces.rows(part["shard"][0].as_py(), part["row"].to_numpy(), COLUMNS)
        return publish.write_part(
            self._fence,
            faces.select([*schema.PHOTOGRAPHS.names, "face_id"]),
            lambda: self._embed(faces).select(schema.EMBEDDINGS.names).cast(schema.EMBEDDINGS),
            before_s=time.monotonic() - began,
        )


def _publish(
    fence: Fence, faces: publish.Dataset, shards: dict[str, pa.ChunkedArray], told: dict[str, Any]
) -> publish.Dataset:
    """One file per shard, of its faces in its order."""
    generation = publish.begin(fence)
    held = Held.read(publish.parts(fence.folder))
    column = schema.EMBEDDINGS.get_field_index("faces_generation")
    files = []
    for number, (uri, ids) in enumerate(shards.items()):
        rows = held.gather(ids)
        for name, values in zip(
            ADDRESS, storage.read_table(uri, ADDRESS, expected=faces.expected(uri)), strict=True
        ):
            rows = rows.set_column(rows.column_names.index(name), name, values)
        made_of = pa.array(
            [faces.generation] * rows.num_rows, pa.int32()
        )  # older parts name the one they saw
        rows = rows.set_column(column, "faces_generation", made_of).cast(schema.EMBEDDINGS)
        files.append(generation.write(f"embeddings-{number:05d}.parquet", "embeddings", rows))
    described = {
        **told,
        "faces_generation": faces.generation,
        "faces_digest": faces.digest,
        "core_seconds": held.core_seconds,
        "counts": {"faces": sum(file["rows"] for file in files)},
    }
    return generation.publish(files, described)
