"""Who or what is to be forgotten, and which rows and records are theirs.

**Theirs directly** are the rows with the person's name, and rows without a name whose photograph lies in a folder of that
name directly below the root of the source. For ``--source`` they are the rows with the photograph's address.

**Copies are followed once.** A photograph is its bytes: every row with the same bytes (``source_hash``) as a row that is
theirs directly goes too, under whatever name and address, with its face ids. Nothing is followed from a copy: other
photographs of the person under whose name the copy stands stay, also those that lie at the copy's address now.

Names are compared by ``photographs.canonical`` and addresses by ``photographs.resolved``, so that two spellings of one
name or one path are equal.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facerec import documents, s3, storage
from facerec.errors import DatasetError
from facerec.photographs import canonical, resolved
from facerec.records import Shown

KEYS = ["identity", "source_uri", "face_id", "source_hash", "name"]
"""Columns that say whose a row is."""
SETS = ("uris", "copies", "spelled", "face_ids", "hashes", "people", "longer")
JOURNAL: dict[str, documents.Shape] = {"identity": (str, type(None)), "trained?": [str]}
"""What a journal must be, with the names of SETS."""
JOURNAL |= {f"{name}?": [str] for name in SETS}
DAMAGE = (pa.ArrowException, OSError, DatasetError)
"""What reading a damaged file raises. A storage that does not answer is a StorageError, which is none of these."""
UNRESOLVED = r"(^|[^:])//|/\.\.?(/|$)"
"""Addresses that ``resolved`` changes by more than their Unicode form."""


@dataclass(frozen=True)
class Table:
    """A Parquet file of a published folder."""

    uri: str
    root: str
    """The root of the source of its rows, resolved; empty where nobody knows it."""
    orphan: bool
    """Whether its rows have no names of their own, and those that they were made from are not below the roots."""


@dataclass(frozen=True)
class Forgotten:
    """A person or a photograph, and all that was found to be theirs. Names are canonical and addresses resolved."""

    identity: str
    """The person; empty where a photograph is forgotten."""
    uris: frozenset[str] = frozenset()
    """Addresses of the photographs that are theirs directly."""
    copies: frozenset[str] = frozenset()
    """Other addresses at which the same bytes stood."""
    spelled: frozenset[str] = frozenset()
    """All these addresses as the rows spell them, by which the photographs can be opened."""
    face_ids: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    """Of the bytes of the photographs that are theirs directly."""
    people: frozenset[str] = frozenset()
    """The names under which these photographs stood."""
    longer: frozenset[str] = frozenset()
    """Names of others that contain the person's, for the search of texts: Ann is not meant where Ann Lee is named."""

    def to_json(self) -> dict[str, Any]:
        """As the journal keeps it."""
        return {"identity": self.identity} | {name: sorted(getattr(self, name)) for name in SETS}

    @classmethod
    def from_json(cls, said: dict[str, Any], uri: str) -> Forgotten:
        """What ``to_json`` gave, also in an older version. Raises DatasetError, which names ``uri``, if it is damaged."""
        documents.require(uri, said, JOURNAL, "run all erasures again that were killed, and then remove it")
        return cls(said["identity"] or "", **{name: frozenset(said.get(name, [])) for name in SETS})

    def __or__(self, other: Forgotten) -> Forgotten:
        return Forgotten(self.identity, **{name: getattr(self, name) | getattr(other, name) for name in SETS})

    @property
    def names(self) -> frozenset[str]:
        """The person, and the names under which the photographs stood."""
        return self.people | ({self.identity} if self.identity else frozenset())

    def is_named(self, name: str) -> bool:
        """Whether this is the person's name, in any spelling."""
        return bool(self.identity) and canonical(name) == self.identity

    def shown_in(self, shown: Shown) -> bool:
        """Whether a record names the person, one of the faces or one of the photographs."""
        if any(map(self.is_named, shown.identities)) or shown.face_ids & self.face_ids:
            return True
        return bool(set(map(resolved, shown.source_uris)) & (self.uris | self.copies))

    def gone(self, table: pa.Table) -> pa.Array:
        """Which rows of a table with some of KEYS go [n].

        An address decides only where the bytes are not known, and a copy's address only where the face is not either: a
        photograph that was replaced under its address is another photograph.
        """
        masks = [_in(table, "identity", self.is_named), _in(table, "source_hash", self.hashes)]
        masks.append(_in(table, "face_id", self.face_ids))
        unknown_bytes, unknown_face = _missing(table, "source_hash"), _missing(table, "face_id")
        uris = _resolved(table)
        masks.append(pc.and_(_is_in(uris, self.uris), unknown_bytes))
        masks.append(pc.and_(_is_in(uris, self.copies), pc.and_(unknown_bytes, unknown_face)))
        return functools.reduce(pc.or_, masks)

    def called(self, table: pa.Table) -> pa.Array:
        """Rows that stay, of other faces that were recognised as the person [n]."""
        return pc.and_(_in(table, "name", self.is_named), pc.invert(self.gone(table)))

    def direct(self, table: pa.Table, root: str, roots: list[str]) -> pa.Array:
        """Rows that are theirs directly [n]."""
        if not self.identity:
            return _is_in(_resolved(table), self.uris)
        below = [folder == self.identity for folder in folders(table, root, roots)]
        unnamed = _missing(table, "identity")
        if "identity" in table.column_names and below:
            theirs = pc.replace_with_mask(unnamed, unnamed, pa.array(below, pa.bool_()))
            return pc.or_(_in(table, "identity", self.is_named), theirs)
        return _in(table, "identity", self.is_named)

    def undecided(self, table: Table, rows: pa.Table, roots: list[str]) -> int:
        """Rows without a name that stay although their address has a folder of the person's name, because nobody knows
        where the source begins."""
        if not self.identity or not ("identity" in rows.column_names or table.orphan):
            return 0
        stays = rows.filter(pc.and_(_missing(rows, "identity"), pc.invert(self.gone(rows))))
        unknown = [folder in (None, self.identity) for folder in folders(stays, table.root, roots)]
        uris = _resolved(stays).to_pylist()
        return sum(
            lost and any(map(self.is_named, uri.split("/")[:-1]))
            for uri, lost in zip(uris, unknown, strict=True)
            if uri is not None
        )


def folders(table: pa.Table, root: str, roots: list[str]) -> list[str | None]:
    """For each row without a name, the first folder of its photograph below the source's root.

    Empty where the photograph lies in the root itself, None where no root is known that it lies below. Without a ``root``
    of its own the longest of ``roots`` counts.
    """
    unnamed = _missing(table, "identity")
    if not pc.any(unnamed).as_py():
        return []
    own = [root] if root else []
    candidates = [*own, *sorted(roots, key=len, reverse=True)]
    return [_first_folder(uri or "", candidates) for uri in _resolved(table).filter(unnamed).to_pylist()]


def _first_folder(uri: str, roots: list[str]) -> str | None:
    for root in roots:
        if uri.startswith(f"{root}/"):
            first, below, _ = uri[len(root) + 1 :].partition("/")
            return canonical(first) if below else ""
    return None


def read_keys(uri: str) -> pa.Table:
    """Those of KEYS that a Parquet file has; raises DatasetError where it is damaged, FileNotFoundError where it is gone."""
    try:
        with s3.refusals(uri), storage.open_input(uri) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            return parquet.read([name for name in KEYS if name in parquet.schema_arrow.names])
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"it is damaged ({' '.join(str(error).split())[:200]})") from None


def find(tables: list[Table], wanted: Forgotten, roots: list[str]) -> tuple[Forgotten, set[str]]:
    """Everything of ``wanted`` in these tables, and all canonical names in them. Damaged tables are passed over."""
    found, known = wanted, set[str]()
    for table in tables:
        rows = _readable(table.uri)
        theirs = rows.filter(wanted.direct(rows, table.root, roots))
        found |= Forgotten(
            wanted.identity,
            uris=frozenset(map(resolved, _values(theirs, "source_uri"))),
            spelled=_values(theirs, "source_uri"),
            face_ids=_values(theirs, "face_id"),
            hashes=_values(theirs, "source_hash"),
            people=frozenset(map(canonical, _values(theirs, "identity"))),
        )
        known |= {canonical(name) for column in ("identity", "name") for name in _values(rows, column)}
        known |= {
            folder
            for folder in folders(rows, table.root, roots)
            if folder and "identity" in rows.column_names
        }
    followed = found
    for table in tables if found.hashes else []:
        rows = _readable(table.uri)
        copies = rows.filter(_in(rows, "source_hash", found.hashes))
        followed |= Forgotten(
            wanted.identity,
            copies=frozenset(map(resolved, _values(copies, "source_uri"))) - found.uris,
            spelled=_values(copies, "source_uri"),
            face_ids=_values(copies, "face_id"),
            people=frozenset(map(canonical, _values(copies, "identity"))),
        )
    longer = frozenset(name for name in known if wanted.identity in name and name != wanted.identity)
    return followed | Forgotten(wanted.identity, longer=longer if wanted.identity else frozenset()), known


def _readable(uri: str) -> pa.Table:
    try:
        return read_keys(uri)
    except (DatasetError, FileNotFoundError):
        return pa.table({name: pa.array([], pa.string()) for name in KEYS})


def _values(table: pa.Table, column: str) -> frozenset[str]:
    there: Iterable[str | None] = table[column].unique().to_pylist() if column in table.column_names else []
    return frozenset(value for value in there if value)


def _resolved(table: pa.Table) -> pa.Array:
    """The addresses of the rows [n], resolved; nulls where there are none."""
    if "source_uri" not in table.column_names:
        return pa.nulls(table.num_rows, pa.string())
    uris = pc.utf8_normalize(table["source_uri"].combine_chunks().cast(pa.string()), "NFC")
    if pc.any(pc.match_substring_regex(uris, UNRESOLVED)).as_py():
        return pa.array([uri if uri is None else resolved(uri) for uri in uris.to_pylist()], pa.string())
    return uris


def _missing(table: pa.Table, column: str) -> pa.Array:
    """Rows without a value in a column, or all where there is no such column [n]."""
    if column not in table.column_names:
        return pa.array([True] * table.num_rows, pa.bool_())
    return pc.is_null(table[column].combine_chunks())


def _in(table: pa.Table, column: str, wanted: Any) -> pa.Array:
    """Rows whose value is one of a set, or fulfils a predicate [n]."""
    if column not in table.column_names:
        return pa.array([False] * table.num_rows, pa.bool_())
    values = table[column].combine_chunks()
    if callable(wanted):
        wanted = [value for value in values.unique().to_pylist() if value is not None and wanted(value)]
    return _is_in(values, wanted)


def _is_in(values: pa.Array, wanted: Iterable[str]) -> pa.Array:
    return pc.is_in(values, value_set=pa.array(list(wanted), pa.string()))
