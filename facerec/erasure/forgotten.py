"""What is to be forgotten, and where it is mentioned: rows of tables, and words in texts."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facerec import s3, storage
from facerec.errors import DatasetError

ERASED = "(erased)"
"""Stands in JSON documents where a name was."""
KEYS = ["identity", "source_uri", "face_id", "source_hash", "name"]
"""Columns by which a row is somebody's."""
SETS = ("uris", "face_ids", "hashes", "people", "longer")
FACE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Forgotten:
    """A person or a photograph, and all that was found to be theirs."""

    identity: str | None
    """The person; None where a photograph is forgotten."""
    uris: frozenset[str] = frozenset()
    """The photographs, wherever the same bytes are listed."""
    face_ids: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    """Of the photographs' bytes."""
    people: frozenset[str] = frozenset()
    """Under whose names they stood."""
    longer: frozenset[str] = frozenset()
    """Names of others that hold the person's: Ann is not meant where Ann Lee is named."""

    def to_json(self) -> dict[str, Any]:
        """As the journal keeps it."""
        return {"identity": self.identity} | {name: sorted(getattr(self, name)) for name in SETS}

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Forgotten:
        """What ``to_json`` gave."""
        return cls(said["identity"], **{name: frozenset(said[name]) for name in SETS})

    def __or__(self, other: Forgotten) -> Forgotten:
        return Forgotten(self.identity, **{name: getattr(self, name) | getattr(other, name) for name in SETS})

    def gone(self, table: pa.Table) -> pa.Array:
        """Which rows go, by those of KEYS that the table has [n]."""
        masks = [pa.array([False] * table.num_rows, pa.bool_())]
        for column, values in (
            ("identity", {self.identity}),
            ("source_uri", self.uris),
            ("face_id", self.face_ids),
            ("source_hash", self.hashes),
        ):
            if column in table.column_names:
                wanted = pa.array([value for value in values if value is not None], pa.string())
                masks.append(pc.is_in(table[column].combine_chunks(), value_set=wanted))
        return functools.reduce(pc.or_, masks)

    def called(self, table: pa.Table) -> pa.Array:
        """Rows that stay, of faces that were recognised as the person [n]."""
        if self.identity is None or "name" not in table.column_names:
            return pa.array([False] * table.num_rows, pa.bool_())
        named = pc.fill_null(pc.equal(table["name"].combine_chunks(), self.identity), False)
        return pc.and_(named, pc.invert(self.gone(table)))

    def masked(self, text: str) -> str:
        """The text with ERASED in place of names, URIs and face ids; as it is where it mentions none."""
        if self._name:
            text = self._name.sub(lambda found: ERASED if found[1] else found[0], text)
        for uri in self.uris:
            if uri in text:
                text = re.sub(rf"(?<![\w/]){re.escape(uri)}(?!\w)", ERASED, text)
        return FACE_ID.sub(lambda found: ERASED if found[0] in self.face_ids else found[0], text)

    def mentioned(self, text: str) -> bool:
        """Whether the text names the person, or has a URI or face id in it."""
        return self.masked(text) != text

    @functools.cached_property
    def _name(self) -> re.Pattern[str] | None:
        """The person's name as a whole word (group 1), or a longer name of somebody else."""
        if self.identity is None:
            return None
        others = [re.escape(name) for name in sorted(self.longer, key=len, reverse=True)]
        return re.compile(rf"(?<!\w)(?:{'|'.join([*others, f'({re.escape(self.identity)})'])})(?!\w)")


def read_keys(uri: str) -> pa.Table:
    """Those of KEYS that a Parquet file has; raises DatasetError where it is damaged."""
    try:
        with s3.refusals(uri), storage.open_input(uri) as file:
            parquet = pq.ParquetFile(file)
            return parquet.read([name for name in KEYS if name in parquet.schema_arrow.names])
    except pa.ArrowInvalid as error:
        raise DatasetError(
            f"{uri} is damaged ({' '.join(str(error).split())[:200]}); nobody can say whom it holds: remove it or make it again"
        ) from None


def find(tables: list[str], identity: str | None, spellings: frozenset[str]) -> Forgotten:
    """Everything that these Parquet files hold of a person, or of a photograph by the spellings of its URI.

    The same bytes are the same photograph, under whatever URI and name. A row without a name is the person's where a
    folder of its URI is named so.
    """
    direct = Forgotten(identity, spellings)
    found, names = direct, set[str]()
    for uri in tables:
        table = read_keys(uri)
        found |= _collected(table, pc.or_(direct.gone(table), _in_folder_of(table, identity)), identity)
        for column in {"identity", "name"} & set(table.column_names):
            names |= set(table[column].unique().to_pylist()) - {None, identity}
    for uri in tables:
        table = read_keys(uri)
        found |= _collected(table, found.gone(table), identity)
    longer = frozenset(name for name in names if identity and identity in name)
    return found | Forgotten(identity, longer=longer)


def _collected(table: pa.Table, rows: pa.Array, identity: str | None) -> Forgotten:
    theirs = table.filter(rows)

    def values(column: str) -> frozenset[str]:
        there: Iterable[str | None] = theirs[column].to_pylist() if column in theirs.column_names else []
        return frozenset(value for value in there if value)

    return Forgotten(
        identity, values("source_uri"), values("face_id"), values("source_hash"), values("identity")
    )


def _in_folder_of(table: pa.Table, identity: str | None) -> pa.Array:
    if identity is None or "source_uri" not in table.column_names:
        return pa.array([False] * table.num_rows, pa.bool_())
    below = pc.match_substring(table["source_uri"].combine_chunks(), f"/{identity}/")
    if "identity" not in table.column_names:
        return below
    return pc.and_(below, pc.is_null(table["identity"].combine_chunks()))
