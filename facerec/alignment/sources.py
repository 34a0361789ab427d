"""Where photographs come from: a folder per person, a manifest, local or s3://; listed, never opened.

Identity is the first folder below the root, at any depth: ``Name/x.jpg`` (LFW and the usual IMFDB copy) and
``Actor/Movie/images/x.jpg`` (the original IMFDB, whose annotation text files are ignored like any non-image).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import boto3
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from facerec import schema, storage
from facerec.errors import SourceError

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".ppm",
        ".pgm",
        ".heic",
        ".heif",
    ]
)


@dataclass(frozen=True)
class Listing:
    """What a source holds, sorted by URI."""

    photographs: pa.Table
    """schema.PHOTOGRAPHS rows."""
    ignored: int
    """Files that are no images by their name, hidden ones included."""


def list_photographs(source: str) -> Listing:
    """List a folder or a CSV/Parquet manifest with columns ``uri, identity``; raises SourceError."""
    source = storage.absolute(source)
    if source.lower().endswith((".csv", ".parquet")):
        listing = _from_manifest(source)
    else:
        listing = _from_folder(source)
    if not listing.photographs.num_rows:
        raise SourceError(
            f"{source} holds no photographs ({listing.ignored} other files); point --source at a folder per person or a manifest"
        )
    return listing


def require_trainable(photographs: pa.Table, source: str) -> None:
    """Raise SourceError where nothing could be learnt: one identity only, or nobody with two photographs."""
    counts = photographs.group_by("identity").aggregate([("source_uri", "count")])
    people = [row for row in counts.to_pylist() if row["identity"] is not None]
    if len(people) < 2:
        raise SourceError(
            f"{source} holds {len(people)} identity; at least 2 are needed: one folder a person below --source"
        )
    most = max(row["source_uri_count"] for row in people)
    if most < 2:
        raise SourceError(
            f"{source} holds one photograph of each of {len(people)} identities; a triplet needs 2 of one person (--source)"
        )


def _from_manifest(uri: str) -> Listing:
    try:
        with storage.open_input(uri) as file:
            table = pa.csv.read_csv(file) if uri.lower().endswith(".csv") else pq.read_table(file)
    except FileNotFoundError:
        raise SourceError(f"{uri} does not exist; point --source at a folder or a manifest") from None
    except pa.ArrowInvalid as error:
        raise SourceError(f"{uri} cannot be read as a manifest: {' '.join(str(error).split())}") from None
    if missing := {"uri", "identity"} - set(table.column_names):
        raise SourceError(
            f"{uri} has columns {', '.join(table.column_names)}; a manifest needs uri and identity (missing: {', '.join(sorted(missing))})"
        )
    root = uri.rsplit("/", 1)[0]
    uris = [_below(root, str(value)) for value in table["uri"].to_pylist()]
    names = [None if value is None else str(value) for value in table["identity"].to_pylist()]
    return _listing(list(dict.fromkeys(zip(uris, names, strict=True))), ignored=0)


def _below(root: str, uri: str) -> str:
    return uri if storage.is_s3(uri) or os.path.isabs(uri) else storage.join(root, uri)


def _from_folder(root: str) -> Listing:
    if not storage.is_s3(root) and not os.path.isdir(root):
        found = "is a file" if os.path.exists(root) else "does not exist"
        raise SourceError(
            f"{root} {found}; point --source at a folder per person or a .csv/.parquet manifest"
        )
    ignored, rows = 0, []
    for relative in _walk_s3(root) if storage.is_s3(root) else _walk(root):
        parts = relative.split("/")
        hidden = any(part.startswith(".") for part in parts)
        if hidden or os.path.splitext(relative)[1].lower() not in IMAGE_SUFFIXES:
            ignored += 1
        else:
            rows.append((storage.join(root, relative), parts[0] if len(parts) > 1 else None))
    return _listing(rows, ignored)


def _walk(root: str) -> Iterator[str]:
    """Relative paths of all files; folders behind links are followed once, so a loop of links ends."""
    seen = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, followlinks=True):
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in sorted(folders)}
        folders[:] = [name for name, path in real.items() if path not in seen and not seen.add(path)]  # type: ignore[func-returns-value]
        for name in files:
            yield os.path.relpath(os.path.join(folder, name), root)


def _walk_s3(root: str) -> Iterator[str]:
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    prefix = prefix and prefix + "/"
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    for page in pages:
        for entry in page.get("Contents", []):
            if not entry["Key"].endswith("/"):
                yield entry["Key"].removeprefix(prefix)


def _listing(rows: list[tuple[str, str | None]], ignored: int) -> Listing:
    rows.sort(key=lambda row: (row[0], row[1] or ""))
    columns = [[row[0] for row in rows], [row[1] for row in rows]]
    return Listing(
        pa.table([pa.array(column, pa.string()) for column in columns], schema=schema.PHOTOGRAPHS), ignored
    )
