"""From parts to a generation: duplicates and label conflicts found, faces laid out for training, manifest last.

Identities are cut into chunks and the chunks shuffled, so that any stretch of a shard holds many people, and
each of them several times: what a window of row groups needs to feed whole P x K batches.

The driver holds every row without its image, as Arrow columns; tasks write the shards, and each reads from the
parts only the row groups that its faces lie in.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from facerec import ledger, publish, schema, seeding
from facerec.alignment.sources import Listing
from facerec.errors import SourceError
from facerec.ledger import numbered
from facerec.lock import Fence
from facerec.phash import near_duplicates
from facerec.photographs import digest
from facerec.publish import Generation
from facerec.session import on_whole_blocks

CHUNK = 16
"""Faces of one identity that lie together; a shorter rest stays with the chunk before it."""
ROW_GROUP = 256
"""Faces of a row group at least, where there are as many: it ends with the chunk that fills it."""
SHARD = 16
"""Row groups a file: about 100 MB at 25 KB a face."""

I64 = NDArray[np.int64]


def compact(fence: Fence, listing: Listing, about: dict[str, Any], seed: int) -> publish.Dataset:
    """Write the next generation from all finished parts of photographs still listed, and publish it.

    ``about`` goes into the manifest as it is: the configuration and the preprocessing contract.
    """
    parts = publish.parts(fence.folder)
    found = ledger.account(parts, listing.photographs)
    faces, rejects = found.faces, found.rejects
    if not faces.num_rows:
        reasons = found.reasons("image")
        raise SourceError(
            f"none of {listing.photographs.num_rows} photographs has a face ({_counted(reasons)}); {_advice(reasons)}"
        )
    generation = publish.begin(fence)
    layout = _lay_out(faces["identity"], seed)
    files = _write_shards(generation, layout.plan(faces), parts)
    tables = {"rejects": rejects, "index": layout.index, "near_duplicates": _near_duplicates(faces)}
    files += [generation.write(f"{kind}.parquet", kind, table) for kind, table in tables.items()]
    near_duplicates = {"near_duplicate_groups": pc.count_distinct(tables["near_duplicates"]["group"]).as_py()}
    told = {
        "listing": digest(listing.photographs),
        "counts": found.counts(listing.photographs.num_rows, listing.ignored) | near_duplicates,
        "core_seconds": found.core_seconds,
        "label_conflicts": _label_conflicts(faces),
    }
    erased = {name: value for name, value in publish.current(fence.folder).items() if name == "erased"}
    return generation.publish(files, about | told | erased)


def _counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))


def _advice(reasons: dict[str, int]) -> str:
    """What to change, by the most frequent reason."""
    most = max(reasons, key=lambda reason: reasons[reason])
    if most in ("no_face", "low_confidence"):
        return "lower --detection.min_confidence or --detection.min_face, or point --source at photographs of people"
    if most == schema.UNAVAILABLE:
        return "correct the paths or permissions of --source"
    return "point --source at photographs in JPEG or PNG of at most some 40 megapixels"


@dataclass(frozen=True)
class Layout:
    """Where each face goes."""

    order: I64
    """Faces, by their number, in the order of the shards."""
    groups: I64
    """Row group of each, numbered from 0 through all shards."""
    index: pa.Table
    """schema.INDEX rows: one a chunk."""

    def plan(self, faces: pa.Table) -> list[pa.Table]:
        """One table per shard: its faces in order, by ``part``, ``row`` and ``face_id``, and the ``row_group`` of each."""
        columns = {name: faces[name].to_numpy()[self.order] for name in ("part", "row")}
        face_ids = faces["face_id"].take(self.order)
        table = pa.table({**columns, "row_group": self.groups, "face_id": face_ids})
        ends = np.flatnonzero(np.diff(self.groups // SHARD)) + 1
        return [table.slice(at, end - at) for at, end in pairwise([0, *ends.tolist(), table.num_rows])]


def _lay_out(identities: pa.ChunkedArray, seed: int) -> Layout:
    """Chunks of one identity in seeded shuffled order; within an identity, faces are shuffled too."""
    codes, names = numbered(identities)
    order, faces = np.argsort(codes, kind="stable"), np.bincount(codes)
    for name, end, size in zip(names.to_pylist(), np.cumsum(faces), faces, strict=True):
        shuffled = seeding.generator("layout", seed, name or "").permutation(size)
        order[end - size : end] = order[end - size : end][shuffled]
    whole = np.maximum(1, faces // CHUNK)
    sizes = np.full(whole.sum(), CHUNK)
    sizes[np.cumsum(whole) - 1] = faces - (whole - 1) * CHUNK
    chunks = seeding.generator("chunks", seed).permutation(len(sizes))
    firsts, sizes = (np.cumsum(sizes) - sizes)[chunks], sizes[chunks]
    starts = np.cumsum(sizes) - sizes  # of each chunk, in the shards' order
    groups, first_rows = row_groups(sizes)
    files = [_shard(number) for number in range(groups[-1] // SHARD + 1)]
    index = {
        "identity": names.take(pa.array(np.repeat(np.arange(len(whole)), whole)[chunks])),
        "file": pa.array(files).take(pa.array(groups // SHARD)),
        "row_group": groups % SHARD,
        "first_row": first_rows,
        "rows": sizes,
    }
    return Layout(
        order[np.repeat(firsts - starts, sizes) + np.arange(len(order))],
        np.repeat(groups, sizes),
        pa.table(index).cast(schema.INDEX),
    )


def row_groups(chunks: I64) -> tuple[I64, I64]:
    """Row group of each chunk, by their sizes, and its first row there.

    A row group takes chunks until they hold ROW_GROUP rows or just more; the last one may hold fewer.
    """
    ends = np.cumsum(chunks)
    last, filled = [], 0
    while filled < ends[-1]:
        last.append(int(np.searchsorted(ends, min(filled + ROW_GROUP, ends[-1]))))
        filled = ends[last[-1]]
    groups = np.searchsorted(last, np.arange(len(chunks)))
    starts = ends - chunks
    return groups, starts - starts[np.searchsorted(groups, groups)]


def _shard(number: int) -> str:
    return f"faces-{number:05d}.parquet"


def _write_shards(generation: Generation, plan: list[pa.Table], parts: list[str]) -> list[dict[str, Any]]:
    """Write the shards, each by one task; gives their entries of the manifest, in order."""
    written = on_whole_blocks(plan).map_batches(
        _write_shard,  # type: ignore[arg-type]  # Ray's stub has no fn_args in it
        fn_args=(generation, parts),
        batch_size=None,
        batch_format="pyarrow",
    )
    entries = []
    for entry in written.iter_rows():
        entries.append(entry)
        print(f"align: {len(entries)}/{len(plan)} shards written", flush=True)
    return sorted(entries, key=lambda entry: str(entry["path"]))


def _write_shard(plan: pa.Table, generation: Generation, parts: list[str]) -> pa.Table:
    """Gather a shard's faces from the parts and write it; gives its entry of the manifest."""
    groups, sizes = np.unique(plan["row_group"], return_counts=True)
    name = _shard(groups[0] // SHARD)
    table = ledger.gather(parts, plan, schema.FACES.names)
    entry = generation.write(name, "faces", table.cast(schema.FACES), row_groups=sizes.tolist())
    return pa.table({name: [value] for name, value in entry.items()})


def _near_duplicates(faces: pa.Table) -> pa.Table:
    """schema.NEAR_DUPLICATES rows, group by group."""
    groups = near_duplicates(faces["phash"].to_numpy())
    rows = np.argsort(groups, kind="stable")
    rows = rows[np.bincount(groups)[groups[rows]] > 1]
    numbers = np.unique(groups[rows], return_inverse=True)[1]
    return pa.table([faces["face_id"].take(rows), numbers], schema=schema.NEAR_DUPLICATES)


def _label_conflicts(faces: pa.Table) -> list[dict[str, Any]]:
    """The same bytes under two identities: one label is wrong, and only the user can say which."""
    table = pa.table({"hash": faces["source_hash"], "identity": faces["identity"].fill_null("")})
    groups = table.group_by("hash").aggregate([("identity", "distinct")])
    groups = groups.filter(pc.greater(pc.list_value_length(groups["identity_distinct"]), 1))
    return [
        {"source_hash": group["hash"], "identities": sorted(group["identity_distinct"])}
        for group in groups.to_pylist()
    ]
