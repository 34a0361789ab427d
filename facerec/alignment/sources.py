"""Where photographs come from: a folder per person, a manifest, local or s3://; listed, never opened.

Identity is the first folder below the root, at any depth: ``Name/x.jpg`` (LFW and the usual IMFDB copy) and
``Actor/Movie/images/x.jpg`` (the original IMFDB, whose annotation text files are ignored like any non-image).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from facerec import s3, schema, storage
from facerec.errors import SourceError
from facerec.photographs import as_table, file_version, in_order

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

AS_TEXT = pa.csv.ConvertOptions(
    column_types=dict.fromkeys(("uri", "identity", "version"), pa.string()),
    strings_can_be_null=True,
    null_values=[""],
)
"""An identity of 007 is no number, and an empty one is none."""

BATCH = 65_536
"""Files that are Python strings at once while a folder is listed."""

File = tuple[str, str | None]
"""A file below a source's root, and its version."""


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
    is_manifest = source.lower().endswith((".csv", ".parquet"))
    s3.require(source.rsplit("/", 1)[0] if is_manifest else source)
    listing = _from_manifest(source) if is_manifest else _from_folder(source)
    if not listing.photographs.num_rows:
        raise SourceError(
            f"{source} holds no photographs ({listing.ignored} other files); point --source at a folder per person or a manifest"
        )
    return listing


def _from_manifest(uri: str) -> Listing:
    try:
        with s3.refusals(uri), storage.open_input(uri) as file:
            csv = uri.lower().endswith(".csv")
            table = pa.csv.read_csv(file, convert_options=AS_TEXT) if csv else pq.read_table(file)
    except FileNotFoundError:
        raise SourceError(f"{uri} does not exist; point --source at a folder or a manifest") from None
    except pa.ArrowInvalid as error:
        raise SourceError(f"{uri} cannot be read as a manifest: {' '.join(str(error).split())}") from None
    if missing := {"uri", "identity"} - set(table.column_names):
        raise SourceError(
            f"{uri} has columns {', '.join(table.column_names)}; a manifest needs uri and identity (missing: {', '.join(sorted(missing))})"
        )
    uris, names = (table[name].cast(pa.string()) for name in ("uri", "identity"))
    if uris.null_count:
        raise SourceError(f"{uri} has {uris.null_count} rows without uri; every photograph needs one")
    for address in pc.unique(
        pc.list_element(pc.split_pattern(uris.filter(pc.starts_with(uris, "s3://")), "/"), 2)
    ).to_pylist():
        s3.bucket_and_key(f"s3://{address}/")  # refuses credentials, which would go into every row
    whole = pc.match_substring_regex(uris, "^(s3:/)?/")
    below = pc.binary_join_element_wise(uri.rsplit("/", 1)[0], uris, "/")
    uris = pc.if_else(whole, uris, below)
    versions = table["version"].cast(pa.string()) if "version" in table.column_names else _versions(uris)
    photographs = as_table(uris, names, versions).group_by(schema.PHOTOGRAPHS.names).aggregate([])
    addresses, identities = photographs["source_uri"], pc.fill_null(photographs["identity"], "\x1f")
    if len(pc.binary_join_element_wise(addresses, identities, "\x1f").unique()) < photographs.num_rows:
        raise SourceError(
            f"{uri} lists a photograph in two versions; give each uri one value in the column version"
        )
    return _listing(photographs.cast(schema.PHOTOGRAPHS), ignored=0)


def _versions(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """The version of each photograph of a manifest; null where it is not there."""
    found = []
    with ThreadPoolExecutor(s3.CONNECTIONS) as pool:
        for at in range(0, len(uris), BATCH):
            some = uris.slice(at, BATCH).to_pylist()
            found.append(pa.array(pool.map(_version, some), pa.string()))
    return pa.chunked_array(found, pa.string())


def _version(uri: str) -> str | None:
    try:
        return s3.etag(uri) if storage.is_s3(uri) else file_version(os.stat(uri))
    except (FileNotFoundError, PermissionError):
        return None


def _from_folder(root: str) -> Listing:
    if not storage.is_s3(root) and not os.path.isdir(root):
        found = "is a file" if os.path.exists(root) else "does not exist"
        raise SourceError(
            f"{root} {found}; point --source at a folder per person or a .csv/.parquet manifest"
        )
    return _from_files(root, _walk_s3(root) if storage.is_s3(root) else _walk(root))


def _from_files(root: str, files: Iterator[File]) -> Listing:
    """The images among files below the root; a million of them are never a million Python objects at once."""
    ignored, batches = 0, [schema.PHOTOGRAPHS.empty_table()]
    while some := list(islice(files, BATCH)):
        images = [(name, version) for name, version in some if _is_image(name)]
        ignored += len(some) - len(images)
        identities = [name.split("/", 1)[0] if "/" in name else None for name, _ in images]
        uris = [storage.join(root, name) for name, _ in images]
        batches.append(as_table(uris, identities, [version for _, version in images]))
    return _listing(pa.concat_tables(batches), ignored)


def _is_image(relative: str) -> bool:
    hidden = any(part.startswith(".") for part in relative.split("/"))
    return not hidden and os.path.splitext(relative)[1].lower() in IMAGE_SUFFIXES


def _walk(root: str) -> Iterator[File]:
    """All files by their paths relative to the root; folders behind links are followed once, so a loop of links ends.

    A name that is no UTF-8, which no Arrow string can hold, comes escaped: it cannot be read, but is counted.
    """
    seen = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in sorted(folders)}
        folders[:] = [name for name, path in real.items() if path not in seen and not seen.add(path)]  # type: ignore[func-returns-value]
        below = os.path.relpath(folder, root)
        for name in files:
            path = name if below == "." else f"{below}/{name}"
            version = _version(f"{folder}/{name}") if _is_image(path) else None
            yield os.fsencode(path).decode("utf-8", "backslashreplace"), version


def _refuse(error: OSError) -> None:
    raise SourceError(
        f"{error.filename!r} cannot be listed ({error.strerror}); make it readable or move it out of --source"
    )


def _walk_s3(root: str) -> Iterator[File]:
    """Keys below the root, a thousand a request. boto3 gives them as they are; Arrow would not (line ends)."""
    bucket, prefix = s3.bucket_and_key(root)
    prefix = prefix and prefix + "/"
    with s3.refusals(root):
        pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):
                    yield entry["Key"].removeprefix(prefix), s3.etag_of(entry)


def _listing(photographs: pa.Table, ignored: int) -> Listing:
    ordered = in_order(photographs)
    pa.default_memory_pool().release_unused()  # more than what the listing holds
    return Listing(ordered, ignored)
