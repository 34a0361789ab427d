"""Which faces there are and where they lie: a dataset's index table as arrays.

A face's *ordinal* counts the faces of the index from 0, in its order: the name by which schedule and loader speak
of a face. It is fixed for one generation of the dataset, which a run pins. Everything is flat arrays, because 10^8
faces make 6 million spans.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from facerec.errors import DatasetError
from facerec.publish import Dataset

Ints = NDArray[np.int64]


class FaceIndex:
    """Spans of faces; a span is one identity's run of rows within one row group."""

    @classmethod
    def read(cls, dataset: Dataset) -> FaceIndex:
        """The index of a published faces/ folder."""
        return cls(pa.concat_tables(dataset.tables("index", repetitive=["identity", "file"])))

    def __init__(self, table: pa.Table) -> None:
        """From rows of ``schema.INDEX``. Faces without an identity have no place in ``identities``."""
        rows = table["rows"].to_numpy()
        if (rows <= 0).any():
            raise DatasetError("the faces index holds an empty span; run jobs/align.py again")
        self.rows = rows
        """Faces of each span."""
        self.starts: Ints = np.cumsum(rows, dtype=np.int64) - rows
        """Ordinal of each span's first face."""
        self.identities, self.codes = _identities(table)
        """All names, sorted; and each span's place among them, -1 for none."""
        self.files: list[str] = _encoded(table, "file")[0]
        """Files, by their names within the dataset."""
        self._first_rows = table["first_row"].to_numpy()
        self.groups, self._places = _row_groups(_encoded(table, "file")[1], table["row_group"].to_numpy())
        """Each span's row group, numbered from 0 through all files."""

    @property
    def faces(self) -> Ints:
        """How many faces each of ``identities`` has."""
        named = self.codes >= 0
        counts = np.bincount(self.codes[named], self.rows[named], minlength=len(self.identities))
        return counts.astype(np.int64)

    def locate(self, ordinal: int) -> tuple[str, int, int]:
        """File, row group within it, and row within that."""
        span = int(np.searchsorted(self.starts, ordinal, side="right")) - 1
        file, row_group = self._places[self.groups[span]]
        return self.files[file], int(row_group), int(self._first_rows[span] + ordinal - self.starts[span])


def _identities(table: pa.Table) -> tuple[list[str], NDArray[np.int32]]:
    names, codes = _encoded(table, "identity")
    order = sorted((code for code, name in enumerate(names) if name), key=lambda code: names[code])
    ranks = np.full(len(names) + 1, -1, np.int32)  # the last one is for null, whose code is -1
    ranks[order] = np.arange(len(order), dtype=np.int32)
    return [names[code] for code in order], ranks[codes]


def _row_groups(files: NDArray[np.int32], row_groups: NDArray[np.int32]) -> tuple[NDArray[np.int32], Ints]:
    """Each span's row group, numbered in order of file and place; and [groups, 2]: file and place of each."""
    keys = files.astype(np.int64) << 32
    keys |= row_groups
    distinct = np.unique(keys)
    return np.searchsorted(distinct, keys).astype(np.int32), np.stack(
        [distinct >> 32, distinct & 0xFFFFFFFF], axis=1
    )


def _encoded(table: pa.Table, name: str) -> tuple[list[str], NDArray[np.int32]]:
    """Distinct strings of a column, and each row's place among them, -1 for null."""
    column = table[name].unify_dictionaries().combine_chunks()
    encoded = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.fill_null(-1).to_numpy()
