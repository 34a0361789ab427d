"""The embedding stage over photographs: another stage's aligner feeds it, and no face touches a disk.

A part is some hundred photographs and one atomic file of vectors and rejects. One actor finds the faces of a part and then
embeds them, so every core is busy whatever the faces; on a GPU it does both on its share. The face travels as the JPEG that
a shard would hold, so the vectors are those of ``--faces``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from facerec import access, ledger, lock, nodes, pool, publish, schema, storage
from facerec.embedding.config import EmbedConfig
from facerec.embedding.embedder import (
    RowEmbedder,
    Stamp,
    about,
    checked_card,
    claimed,
    how,
)
from facerec.lock import Fence
from facerec.photographs import digest
from facerec.progress import Progress
from facerec.telemetry import Prometheus

FILE_ROWS = 50_000
"""Vectors a published file: 25 MB."""

Align = Callable[[pa.Table], pa.Table]
"""schema.PHOTOGRAPHS rows to schema.ALIGNED rows."""


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """Photographs, and how another stage finds the faces in them."""

    listed: pa.Table
    """schema.PHOTOGRAPHS rows, sorted."""
    ignored: int
    """Other files of the source."""
    notes: Sequence[str] = ()
    """What else people should know of the source, a line each."""
    make_align: Callable[[], Align]
    """What each actor calls once."""
    preprocessing: dict[str, Any]
    """The contract of the faces."""
    deciding: dict[str, Any]
    """The settings that decide which faces there are."""
    part: int
    """Photographs a part."""


def embed_photographs(photographs: Photographs, config: EmbedConfig) -> publish.Dataset:
    """Embed the faces of the photographs that are not done yet, and publish. Raises before any work where things do not fit."""
    card = checked_card(config, photographs.preprocessing, "the photographs' faces")
    out, listed = storage.absolute(config.out), photographs.listed
    access.require_some(listed, "--photos")
    pool.require_gpu(config)
    with publish.exclusive(out, "--out") as fence:
        config = claimed(out, config, card, photographs.deciding, fence)
        nodes.require_shared(out, storage.absolute(config.model), *_one_that_is_there(listed))
        missing = ledger.missing(publish.parts(out), listed)
        print(
            f"embed: {listed.num_rows} photographs listed ({photographs.ignored} other files ignored), "
            f"{missing.num_rows} to embed",
            *(f"embed: {note}" for note in photographs.notes),
            sep="\n",
            flush=True,
        )
        if not missing.num_rows and ledger.is_current(out, listed):
            print("embed: finished already, nothing new in the source", flush=True)
            return publish.open_dataset(out, "jobs/embed.py")
        stamp = Stamp(
            model_id=card.model_id,
            preprocessing_id=card.preprocessing_id,
            faces_generation=None,
        )
        if missing.num_rows:
            pool.say_if_waiting(config, "embed")
            progress, unavailable = Progress("embed", missing.num_rows, Prometheus("facerec_embed", out)), 0
            with nodes.NodeSeconds() as held:
                for part in written_parts(fence, missing, photographs, config, stamp):
                    progress.add(part)
                    unavailable += part["unavailable"]
                    if part["unavailable"] == part["photographs"]:
                        access.require_some(listed, "--photos")
                    lock.require_held(out)
            progress.say()
            print(f"embed: {held.of(missing.num_rows, 'photographs')}", flush=True)
            if unavailable == missing.num_rows and ledger.is_current(out, listed):
                print("embed: nothing new: the same photographs cannot be opened as before", flush=True)
                return publish.open_dataset(out, "jobs/embed.py")
        dataset = _publish(fence, photographs, about(config, card))
        ledger.say_unavailable("embed", dataset.manifest["counts"])
        return dataset


def _one_that_is_there(listed: pa.Table) -> list[str]:
    """A photograph that every node should see, if this one sees any on its disk; a manifest may name files that are gone."""
    return list(itertools.islice(filter(os.path.exists, listed["source_uri"].to_pylist()), 1))


def plan_photographs(photographs: Photographs, config: EmbedConfig) -> dict[str, object]:
    """What embed_photographs would do, for people; raises what it would, and writes nothing."""
    card = checked_card(config, photographs.preprocessing, "the photographs' faces")
    out, listed = storage.absolute(config.out), photographs.listed
    access.require_some(listed, "--photos")
    config = claimed(out, config, card, photographs.deciding)
    missing = ledger.missing(publish.parts(out), listed).num_rows
    return {
        "photographs": f"{listed.num_rows:,} ({photographs.ignored:,} other files ignored)",
        **({"noticed": "; ".join(photographs.notes)} if photographs.notes else {}),
        "to embed": f"{missing:,} photographs in parts of up to {photographs.part}",
        **how(config, card),
    }


def written_parts(
    fence: Fence,
    missing: pa.Table,
    photographs: Photographs,
    config: EmbedConfig,
    stamp: Stamp,
) -> Iterator[dict[str, Any]]:
    """Align, embed and write part by part; yields the counts of each as it is finished."""
    parts = [missing.slice(at, photographs.part) for at in range(0, missing.num_rows, photographs.part)]
    yield from pool.worked(config, parts, PhotographEmbedder, (photographs.make_align, config, stamp, fence))


class PhotographEmbedder:
    """The job's actor: finds the faces of a part, embeds them and writes the vectors, with the rejects."""

    def __init__(
        self, make_align: Callable[[], Align], config: EmbedConfig, stamp: Stamp, fence: Fence
    ) -> None:
        self._align, self._embed, self._fence = make_align(), RowEmbedder(config, stamp), fence

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A packed part of schema.PHOTOGRAPHS rows to one row of counts."""
        part = pool.unpacked(batch)
        return publish.write_part(self._fence, part, lambda: self._rows(self._align(part)))

    def _rows(self, aligned: pa.Table) -> pa.Table:
        """schema.ALIGNED rows to schema.EMBEDDED ones."""
        face = pc.is_null(aligned["reason"])
        vectors, rejects = self._embed(aligned.filter(face)), aligned.filter(pc.invert(face))
        return pa.concat_tables([_embedded(vectors), _embedded(rejects)])


def _embedded(rows: pa.Table) -> pa.Table:
    """schema.EMBEDDED rows; what rejects have not is null."""
    columns = [
        rows[field.name].cast(field.type)
        if field.name in rows.column_names
        else pa.nulls(rows.num_rows, field.type)
        for field in schema.EMBEDDED
    ]
    return pa.table(columns, schema=schema.EMBEDDED)


def _publish(fence: Fence, photographs: Photographs, told: dict[str, Any]) -> publish.Dataset:
    """Vectors in the order of the photographs, and the rejects; a copy of a photograph is one."""
    parts = publish.parts(fence.folder)
    found = ledger.account(parts, photographs.listed)
    generation = publish.begin(fence)
    files = []
    for number in range(max(1, -(-found.faces.num_rows // FILE_ROWS))):
        faces = found.faces.slice(number * FILE_ROWS, FILE_ROWS)
        rows = ledger.gather(parts, faces, schema.EMBEDDINGS.names)
        name = f"embeddings-{number:05d}.parquet"
        files.append(generation.write(name, "embeddings", rows.cast(schema.EMBEDDINGS)))
    files.append(generation.write("rejects.parquet", "rejects", found.rejects))
    described = {
        **told,
        "source": photographs.deciding,
        "faces_generation": None,
        "faces_digest": None,  # of no faces/ folder
        "listing": digest(photographs.listed),
        "core_seconds": found.core_seconds,
        "counts": found.counts(photographs.listed.num_rows, photographs.ignored),
    }
    return generation.publish(files, described)
