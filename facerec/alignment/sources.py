"""Where photographs come from: a folder per person, a manifest, local or s3://; listed, never opened.

Identity is the first folder below the root, at any depth: ``Name/x.jpg`` (LFW and the usual IMFDB copy) and
``Actor/Movie/images/x.jpg`` (the original IMFDB, whose annotation text files are ignored like any non-image).
Identities are compared in Unicode NFC and without surrounding white space; URIs keep the bytes of the file system.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from facerec import access, s3, schema, storage
from facerec.errors import SourceError, StorageError
from facerec.photographs import as_table, canonical, file_version, in_order

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
        ".mpo",
    ]
)

NOBODY = frozenset(
    [
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
        "__macosx",
        "thumbs.db",
    ]
)
"""Names, in lower case, of folders and files that network drives and operating systems make: nobody is called so."""
NOBODY_BEGINS = (".", "synofile_thumb_")
"""What such names begin with: hidden ones (.Trash-1000, .Trashes, ._x.jpg) and Synology's thumbnails."""

COLUMNS = ("uri", "identity", "version")
"""What is read of a manifest; the last one may be missing."""
AS_TEXT = pa.csv.ConvertOptions(
    column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=True, null_values=[""]
)
"""An identity of 007 is no number, and an empty one is none."""
DOTS = r"(^|/)\.{1,2}(/|$)|[^:]//"
"""Paths in which something is to be resolved."""

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
    """Files that are not images by their name, and files and folders that are hidden or NOBODY's."""
    absent: int = 0
    """Photographs that were not there, or not readable, when their versions were asked for."""
    merged: int = 0
    """Identities that are spelled otherwise elsewhere (NFC and NFD, surrounding white space)."""
    unfollowed: int = 0
    """Links to folders that are listed under another name, or that lead to the source itself."""
    broken: int = 0
    """Links that lead nowhere, as to a drive that is not mounted."""

    def notes(self) -> list[str]:
        """What else people should know, a line each."""
        said = {
            "photographs could not be found when they were listed": self.absent,
            "identities differ from others only in spelling (Unicode form, surrounding spaces); each is one person with its like": self.merged,
            "links to folders were not followed: the folders are listed under another name": self.unfollowed,
            "links lead nowhere; if they lead to a drive, mount it": self.broken,
        }
        return [f"{number} {what}" for what, number in said.items() if number]


def list_photographs(source: str, flag: str = "--source") -> Listing:
    """List a folder or a CSV/Parquet manifest with columns ``uri, identity`` and, if it likes, ``version``.

    ``flag`` is what names the source. Raises SourceError, and StorageError where the disk or S3 fails.
    """
    source = storage.absolute(source)
    is_manifest = source.lower().endswith((".csv", ".parquet")) and not os.path.isdir(source)
    s3.require(source.rsplit("/", 1)[0] if is_manifest else source)
    try:
        listing = _from_manifest(source) if is_manifest else _from_folder(source)
    except SourceError as error:
        raise SourceError(f"{error} ({flag})") from None
    if not listing.photographs.num_rows:
        raise SourceError(
            f"{source} holds no photographs ({listing.ignored} other files); point {flag} at a folder per person or a manifest"
        )
    return listing


def _from_manifest(uri: str) -> Listing:
    table = _read_manifest(uri)
    uris = _resolved(uri, table["uri"])
    names, merged = _people(table["identity"])
    versions = table["version"] if "version" in table.column_names else _versions(uris)
    photographs = as_table(uris, names, versions).group_by(schema.PHOTOGRAPHS.names).aggregate([])
    versioned = photographs.group_by(["source_uri", "source_version"]).aggregate([])
    if len(versioned["source_uri"].unique()) < versioned.num_rows:
        raise SourceError(
            f"{uri} lists a photograph in two versions; give each uri one value in the column version"
        )
    listing = _listing(photographs.cast(schema.PHOTOGRAPHS), ignored=0, merged=merged)
    return listing if "version" in table.column_names else _with_absent(listing)


def _read_manifest(uri: str) -> pa.Table:
    """The columns COLUMNS as strings; raises SourceError where the file is damaged or lacks what is needed."""
    try:
        table = access.retried(functools.partial(_read_columns, uri), uri)
    except access.Unavailable as why:
        found = "does not exist" if "No such file" in str(why) else f"cannot be read ({why})"
        raise SourceError(f"{uri} {found}; a folder or a manifest is needed") from None
    except (pa.ArrowException, ValueError, OverflowError) as error:
        said = "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(error).split()))
        raise SourceError(f"{uri} cannot be read as a manifest: {said[:300]}") from None
    text = table["uri"]
    if empty := text.null_count + (pc.sum(pc.equal(text, "")).as_py() or 0):
        raise SourceError(f"{uri} has {empty} rows without uri; every photograph needs one")
    return table


def _read_columns(uri: str) -> pa.Table:
    """Raises Unavailable, and ValueError or pa.ArrowException for what the file holds; an OSError is of the disk."""
    with access.of_one_photograph(uri), s3.refusals(uri), storage.open_input(uri) as file:
        if uri.lower().endswith(".csv"):
            table = pa.csv.read_csv(file, convert_options=AS_TEXT)
            _require_columns(table.schema)
            return _as_text(table.select([name for name in COLUMNS if name in table.column_names]))
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            _require_columns(parquet.schema_arrow)
            return _as_text(parquet.read([name for name in COLUMNS if name in parquet.schema_arrow.names]))
        except OSError as error:
            if error.errno or "AWS Error" in str(error):
                raise
            raise ValueError(str(error)) from None  # damaged pages: Arrow gives them no number


def _require_columns(columns: pa.Schema) -> None:
    for name in COLUMNS:
        if (number := columns.names.count(name)) > 1:
            raise ValueError(f"it has {number} columns {name}; one is needed")
        if number and not _is_text(columns.field(name).type):
            raise ValueError(f"its column {name} is of type {columns.field(name).type}; text is needed")
    if missing := {"uri", "identity"} - set(columns.names):
        raise ValueError(
            f"it has columns {', '.join(columns.names)}; uri and identity are needed (missing: {', '.join(sorted(missing))})"
        )


def _is_text(kind: pa.DataType) -> bool:
    """Strings of any kind, and whole numbers, which are names to us."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(strings or pa.types.is_integer(kind) or pa.types.is_null(kind))


def _as_text(table: pa.Table) -> pa.Table:
    return pa.table({name: table[name].cast(pa.string()) for name in table.column_names})


def _resolved(manifest: str, uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """Addresses of a manifest's rows: relative ones lie beside it, ``.`` and ``..`` are resolved on disk.

    Raises SourceError for an address that cannot be a photograph's, by the number of its row.
    """
    is_s3 = pc.match_substring_regex(uris, storage.S3)
    foreign = pc.and_(pc.match_substring_regex(uris, storage.FOREIGN), pc.invert(is_s3))
    home = pc.starts_with(uris, "~/")
    if (row := pc.index(pc.or_(foreign, home), True).as_py()) >= 0:
        raise SourceError(f"{manifest}, row {row + 1}: {storage.not_supported(uris[row].as_py())}")
    for address in pc.unique(pc.list_element(pc.split_pattern(uris.filter(is_s3), "/"), 2)).to_pylist():
        s3.bucket_and_key(f"s3://{address}/")  # refuses credentials, which would go into every row
    relative = pc.invert(pc.or_(is_s3, pc.starts_with(uris, "/")))
    joined = pc.if_else(relative, pc.binary_join_element_wise(manifest.rsplit("/", 1)[0], uris, "/"), uris)
    dotted = pc.and_(pc.match_substring_regex(uris, DOTS), pc.invert(is_s3))
    if not pc.any(dotted).as_py():
        return joined
    whole = [_normal(uri) for uri in joined.filter(dotted).to_pylist()]
    joined, dotted = joined.combine_chunks(), dotted.combine_chunks()
    return pa.chunked_array([pc.replace_with_mask(joined, dotted, pa.array(whole, pa.string()))])


def _normal(uri: str) -> str:
    if not storage.is_s3(uri):
        return os.path.normpath(uri)
    bucket, key = s3.bucket_and_key(uri)
    return f"s3://{bucket}{os.path.normpath('/' + key)}"


def _people(names: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """Identities as they are compared, null where nothing is left, and how many fall together with another."""
    distinct = names.unique()
    compared = [canonical(name) or None if name is not None else None for name in distinct.to_pylist()]
    together = pa.array(compared, pa.string()).take(pc.index_in(names, value_set=distinct))
    return together, _merged(dict(zip(distinct.to_pylist(), compared, strict=True)))


def _merged(people: dict[Any, str | None]) -> int:
    named = [name for name in people.values() if name is not None]
    return len(named) - len(set(named))


def _versions(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """The version of each photograph of a manifest; null where it is not there."""
    found = []
    with ThreadPoolExecutor(s3.CONNECTIONS) as pool:
        for at in range(0, len(uris), BATCH):
            some = uris.slice(at, BATCH).to_pylist()
            found.append(pa.array(pool.map(_version, some), pa.string()))
    return pa.chunked_array(found, pa.string())


def _version(uri: str) -> str | None:
    """Of a photograph; None where it is not there. Raises StorageError where the disk or S3 fails."""
    if storage.is_s3(uri):
        return s3.etag(uri)
    try:
        return access.retried(functools.partial(_file_version, uri), uri)
    except (access.Unavailable, ValueError):  # a name that no file can have
        return None


def _file_version(path: str) -> str:
    with access.of_one_photograph(path):
        return file_version(os.stat(path))


def _from_folder(root: str) -> Listing:
    if storage.is_s3(root):
        return _from_files(root, _walk_s3(root))
    if not os.path.isdir(root):
        found = "is a file" if os.path.exists(root) else "does not exist"
        raise SourceError(f"{root} {found}; a folder per person or a .csv/.parquet manifest is needed")
    tree = Tree(root)
    listing = _from_files(root, tree.files())
    ignored = listing.ignored + tree.skipped
    return _with_absent(replace(listing, ignored=ignored, unfollowed=tree.unfollowed, broken=tree.broken))


def _from_files(root: str, files: Iterator[File]) -> Listing:
    """The images among files below the root; a million of them are never a million Python objects at once."""
    ignored, batches = 0, [schema.PHOTOGRAPHS.empty_table()]
    people: dict[str | None, str | None] = {None: None}
    while some := list(islice(files, BATCH)):
        images = [(name, version) for name, version in some if _is_image(name)]
        ignored += len(some) - len(images)
        folders = [name.split("/", 1)[0] if "/" in name else None for name, _ in images]
        people |= {name: canonical(name) or None for name in set(folders) - people.keys() if name is not None}
        uris = [storage.join(root, name) for name, _ in images]
        batches.append(as_table(uris, [people[name] for name in folders], [version for _, version in images]))
    return _listing(pa.concat_tables(batches), ignored, _merged(people))


def _is_image(relative: str) -> bool:
    nobodys = any(_is_nobodys(part) for part in relative.split("/"))
    return not nobodys and os.path.splitext(relative)[1].lower() in IMAGE_SUFFIXES


def _is_nobodys(name: str) -> bool:
    """Whether a folder or file of this name, and all below it, shows nobody: hidden, trash, thumbnails, snapshots."""
    lower = name.lower()
    return lower in NOBODY or lower.startswith(NOBODY_BEGINS)


@dataclass
class Tree:
    """The files below a local folder, real folders first and links to folders after them.

    So a link never takes the name of a folder that has one of its own, and a loop of links ends: a folder is entered
    once, by its real path. Hidden and NOBODY's folders are never entered.
    """

    root: str
    skipped: int = 0
    """Folders that were not entered, being hidden or NOBODY's."""
    unfollowed: int = 0
    """Links to folders that were entered already, or that the root lies in."""
    broken: int = 0
    """Links that lead nowhere, and that are not called like an image."""
    _entered: set[str] = field(default_factory=set)
    _links: list[str] = field(default_factory=list)

    def files(self) -> Iterator[File]:
        """Paths relative to the root, with versions. A name that is not UTF-8 comes escaped: it is counted, not read."""
        root = os.path.realpath(self.root)
        yield from self._below("", root)
        while self._links:
            links = sorted(self._links, key=lambda link: (link.count("/"), link))
            self._links = []
            for link in links:
                target = os.path.realpath(f"{self.root}/{link}")
                if target in self._entered or f"{root}/".startswith(f"{target.rstrip('/')}/"):
                    self.unfollowed += 1
                else:
                    yield from self._below(link, target)

    def _below(self, folder: str, real: str) -> Iterator[File]:
        """Files of a folder and of the real folders below it; links to folders are left for later."""
        folders = [(folder, real)]
        while folders:
            below, real = folders.pop()
            if real in self._entered:
                self.unfollowed += 1
                continue
            self._entered.add(real)
            for entry in _entries(f"{self.root}/{below}"):
                path = f"{below}/{entry.name}" if below else entry.name
                if not _is_folder(entry):
                    image = _is_image(path)
                    self.broken += not image and entry.is_symlink() and not os.path.exists(entry.path)
                    yield _shown(path), _version(entry.path) if image else None
                elif _is_nobodys(entry.name):
                    self.skipped += 1
                elif entry.is_symlink():
                    self._links.append(path)
                else:
                    folders.append((path, f"{real.rstrip('/')}/{entry.name}"))


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """What a folder holds; raises SourceError where it may not be listed, and StorageError where the disk fails."""
    try:
        with access.retried(functools.partial(_scanned, folder), folder) as entries:
            yield from entries
    except access.Unavailable as why:
        raise SourceError(
            f"{_shown(folder)!r} cannot be listed ({why}); make it readable or move it out of the source"
        ) from None
    except OSError as fault:
        raise StorageError(
            f"{_shown(folder)!r} cannot be listed: {fault.strerror}; check the disk or mount, and run the same command"
        ) from None


def _scanned(folder: str) -> Any:
    with access.of_one_photograph(folder):
        return os.scandir(folder)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link that leads nowhere is neither."""
    try:
        return access.retried(functools.partial(_leads_to_folder, entry), entry.path)
    except access.Unavailable:
        return False


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    with access.of_one_photograph(entry.path):
        return entry.is_dir()


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


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


def _with_absent(listing: Listing) -> Listing:
    return replace(listing, absent=listing.photographs["source_version"].null_count)


def _listing(photographs: pa.Table, ignored: int, merged: int) -> Listing:
    ordered = in_order(photographs)
    pa.default_memory_pool().release_unused()  # more than what the listing holds
    return Listing(ordered, ignored, merged=merged)
