"""Parquet files without the rows that are forgotten; their row groups stay as they were, without the lost rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from facerec import schema, storage
from facerec.erasure.forgotten import Forgotten

Bools = NDArray[np.bool_]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Loss:
    """What a file loses."""

    keep: Bools
    """Which of its rows stay [n]."""
    called: int
    """Rows that stay and lose the name that they were recognised by."""

    def __bool__(self) -> bool:
        return bool(self.called or not self.keep.all())


def loss(rows: pa.Table, forgotten: Forgotten) -> Loss:
    """What a file with these columns (``forgotten.read_keys``) would lose."""
    keep = ~np.asarray(forgotten.gone(rows), bool)
    return Loss(keep, pc.sum(forgotten.called(rows)).as_py() or 0)


def without(uri: str, lost: Loss, forgotten: Forgotten) -> tuple[pa.Table, list[int]]:
    """The rows that stay, and the sizes of their row groups, without empty ones."""
    ends = storage.row_group_ends(uri)
    kept = np.concatenate([[0], np.cumsum(lost.keep)])
    sizes = [int(kept[end] - kept[start]) for start, end in pairwise([0, *ends])]
    table = storage.read_table(uri)
    if lost.called:
        name = table["name"].combine_chunks()
        nobody = pc.if_else(forgotten.called(table), pa.scalar(None, name.type), name)
        table = table.set_column(table.column_names.index("name"), table.schema.field("name"), nobody)
    return table.filter(pa.array(lost.keep, pa.bool_())), [size for size in sizes if size]


@dataclass(frozen=True)
class Moved:
    """A shard that was written again."""

    keep: Bools
    """Of its old rows."""
    ends: list[int]
    """Of its old row groups."""


def reindexed(index: pa.Table, moved: dict[str, Moved]) -> pa.Table:
    """schema.INDEX rows after shards lost rows: spans are shorter, and empty ones are gone."""
    files = index["file"].to_numpy()
    group, first, rows = (
        index[name].to_numpy().astype(np.int64) for name in ("row_group", "first_row", "rows")
    )
    for name, shard in moved.items():
        at = files == name
        starts = np.concatenate([[0], shard.ends]).astype(np.int64)
        kept = np.concatenate([[0], np.cumsum(shard.keep)])
        begin = starts[group[at]] + first[at]
        filled = np.diff(kept[starts]) > 0
        first[at] = kept[begin] - kept[starts[group[at]]]
        rows[at] = kept[begin + rows[at]] - kept[begin]
        group[at] = (np.cumsum(filled) - 1)[group[at]]
    columns = [index["identity"], index["file"], group, first, rows]
    table = pa.table(columns, names=schema.INDEX.names).cast(schema.INDEX)
    return table.filter(pa.array(rows > 0, pa.bool_()))


def regrouped(near_duplicates: pa.Table) -> pa.Table:
    """schema.NEAR_DUPLICATES rows without the groups that have one face left, numbered again.

    Faces that were in one group because of a forgotten face stay in one group.
    """
    group = near_duplicates["group"].to_numpy()
    together = np.bincount(group, minlength=1)[group] > 1
    numbers = np.unique(group[together], return_inverse=True)[1]
    faces = near_duplicates["face_id"].filter(pa.array(together, pa.bool_()))
    return pa.table([faces, numbers], schema=schema.NEAR_DUPLICATES)
