"""Which faces there are and where they lie: a dataset's index table as arrays.

A face's *ordinal* counts the faces of the index from 0, in its order: the name by which schedule and loader speak
of a face. It is fixed for one generation of the dataset, which a run pins.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from facerec.errors import DatasetError


class FaceIndex:
    """Spans of faces; a span is one identity's run of rows within one row group."""

    def __init__(self, table: pa.Table) -> None:
        """From rows of ``schema.INDEX``. Faces without an identity cannot be trained on and are left out of it."""
        self.files: list[str] = table["file"].to_pylist()
        self._row_groups = _column(table, "row_group")
        self._first_rows = _column(table, "first_row")
        rows = _column(table, "rows")
        if (rows <= 0).any():
            raise DatasetError("the faces index holds an empty span; run jobs/align.py again")
        self._stops = np.cumsum(rows)
        self._starts = self._stops - rows
        self._spans: dict[str, list[int]] = {}
        for span, identity in enumerate(table["identity"].to_pylist()):
            if identity:
                self._spans.setdefault(identity, []).append(span)

    @property
    def identities(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._spans)

    def count(self, identity: str) -> int:
        """How many faces an identity has."""
        return sum(int(self._stops[span] - self._starts[span]) for span in self._spans[identity])

    def ordinals(self, identity: str) -> NDArray[np.int64]:
        """The ordinals of an identity's faces."""
        return np.concatenate([np.arange(self._starts[s], self._stops[s]) for s in self._spans[identity]])

    def locate(self, ordinal: int) -> tuple[str, int, int]:
        """File, row group, and row within the row group."""
        span = int(np.searchsorted(self._stops, ordinal, side="right"))
        row = int(self._first_rows[span]) + ordinal - int(self._starts[span])
        return self.files[span], int(self._row_groups[span]), row


def _column(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(table[name].to_numpy(), np.int64)
