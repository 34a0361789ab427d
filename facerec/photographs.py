"""Which photographs there are: what a photograph is, its key, its version, and a digest of a whole list of them."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from facerec import schema


def canonical(name: str) -> str:
    """A name or path as facerec compares it: Unicode NFC, without surrounding white space.

    macOS and many network drives store accents decomposed (NFD), so that one name may come in two spellings.
    """
    return unicodedata.normalize("NFC", name).strip()


def as_table(
    uris: Sequence[str] | pa.Array,
    identities: Sequence[str | None] | pa.Array,
    versions: Sequence[str | None] | pa.Array | None = None,
) -> pa.Table:
    """schema.PHOTOGRAPHS rows; without versions they are null."""
    known = pa.nulls(len(uris), pa.string()) if versions is None else versions
    return pa.table([uris, identities, known], schema=schema.PHOTOGRAPHS)


def file_version(status: os.stat_result) -> str:
    """The version of a local file: its size and its modification time in nanoseconds.

    A file that was replaced by one of the same size and the same modification time has the same version.
    """
    return f"{status.st_size}-{status.st_mtime_ns}"


def resolved(uri: str) -> str:
    """An address as facerec compares it: Unicode NFC, with ``.`` and ``..`` resolved, without looking at any disk.

    A manifest's ``../people/x.jpg`` stands in older artifacts as ``/lists/../people/x.jpg``.
    """
    scheme, mark, path = unicodedata.normalize("NFC", uri).rpartition("://")
    kept: list[str] = []
    for name in path.split("/"):
        if name == "..":
            del kept[max(1, len(kept) - 1) :]
        elif name != "." and (name or not kept or mark):
            kept.append(name)
    return scheme + mark + "/".join(kept)


def keys(photographs: pa.Table) -> pa.ChunkedArray:
    """One string per photograph, equal for equal schema.PHOTOGRAPHS rows.

    The same file may be listed under two identities, and another content under the same URI is another photograph.
    """
    columns = [photographs[name] for name in schema.PHOTOGRAPHS.names]
    return pc.binary_join_element_wise(*columns, "\x1f", null_handling="replace", null_replacement="\x1f")


def in_order(photographs: pa.Table) -> pa.Table:
    """schema.PHOTOGRAPHS rows as listings hold them: sorted by URI, then identity, then version."""
    return photographs.sort_by([(name, "ascending") for name in schema.PHOTOGRAPHS.names]).combine_chunks()


def digest(photographs: pa.Table) -> str:
    """A hash of the photographs in their order: equal for equal listings."""
    hashed, names = hashlib.sha256(), keys(photographs)
    for at in range(0, len(names), 2**16):
        hashed.update("".join(f"{name}\n" for name in names.slice(at, 2**16).to_pylist()).encode())
    return hashed.hexdigest()
