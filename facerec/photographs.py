"""Which photographs there are: what is one, what tells it from all others, and a digest of a whole list of them."""

from __future__ import annotations

import hashlib
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

from facerec import schema

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "PPM")
"""What is opened. Pillow's others are no photographs, and one of them runs a program on the file (EPS)."""


def canonical(name: str) -> str:
    """A name or path as facerec compares it: Unicode NFC, without surrounding white space.

    macOS and many network drives store accents decomposed (NFD), so that one name may come in two spellings.
    """
    return unicodedata.normalize("NFC", name).strip()


def keys(photographs: pa.Table) -> pa.ChunkedArray:
    """One string a photograph that tells it from all others: the same file may be listed under two identities."""
    columns = photographs["source_uri"], photographs["identity"]
    return pc.binary_join_element_wise(*columns, "\x1f", null_handling="replace", null_replacement="\x1f")


def in_order(photographs: pa.Table) -> pa.Table:
    """schema.PHOTOGRAPHS rows as listings hold them: by URI, then by identity."""
    return photographs.sort_by([(name, "ascending") for name in schema.PHOTOGRAPHS.names]).combine_chunks()


def digest(photographs: pa.Table) -> str:
    """A hash of the photographs in their order: equal for equal listings."""
    hashed, names = hashlib.sha256(), keys(photographs)
    for at in range(0, len(names), 2**16):
        hashed.update("".join(f"{name}\n" for name in names.slice(at, 2**16).to_pylist()).encode())
    return hashed.hexdigest()
