"""Bytes by URI: local paths and s3:// behind the same few verbs, writes whole or not at all.

A local file is written beside its place and renamed. An object on S3 appears when its last byte has arrived.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from facerec import s3
from facerec.errors import ConfigError, DatasetError, StorageError

READERS = 8
"""Files read at once where many are."""
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""A disk that is full, or not ours to write."""
UNSYNCED = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)
"""A file system, often of a network, that has no fsync for folders."""
S3 = r"^s3://[^/]"
"""An address in S3: it names a bucket."""
FOREIGN = r"^(?:[A-Za-z][A-Za-z0-9+.-]*:/|[A-Za-z]:\\|\\\\)"
"""What is not a path: a scheme (gs://, file:/), a Windows drive or a Windows share; s3:// has to be excepted."""
TAIL = 2**16
"""Bytes read from a Parquet file's end: its footer, unless it has many row groups."""
FILES = 500
"""Files whose rows are held together."""


@dataclass(frozen=True)
class Written:
    """What a write left, known without reading it back."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Expected:
    """What a file should be, as far as it is known, and what to do if it is not."""

    remedy: str = "restore it from a copy"
    bytes: int | None = None
    sha256: str | None = None
    footer_sha256: str | None = None
    """Of a Parquet file's footer, which says where the pages are: checksums are of pages alone."""


def is_s3(uri: str) -> bool:
    """Whether the URI lives in S3 (or something that speaks its protocol); without a bucket it does not."""
    return re.match(S3, uri) is not None


def absolute(uri: str) -> str:
    """The URI as other processes must spell it: local paths become absolute, trailing slashes are removed.

    Raises ConfigError for an address of another kind (gs://, file://, a Windows path), and for an s3:// address that
    holds credentials, which is not repeated.
    """
    if is_s3(uri):
        s3.bucket_and_key(uri)
        return uri.rstrip("/")
    if is_foreign(uri):
        raise ConfigError(not_supported(uri))
    return os.path.abspath(os.path.expanduser(uri))


def is_foreign(uri: str) -> bool:
    """Whether it is an address that nothing here can read or write: another scheme, or a path of Windows."""
    return not is_s3(uri) and re.search(FOREIGN, uri) is not None


def require_writable(folder: str, flag: str) -> None:
    """Raise ConfigError if a local folder cannot be made, or not be written to. It looks, and writes nothing."""
    if is_s3(folder):
        return
    above = absolute(folder)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise ConfigError(f"{folder} cannot be a folder: {above} is a file; choose another {flag}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{folder} cannot be written: {above} is read-only for this user; choose another {flag}"
        )


def require_writable_file(path: str, flag: str) -> None:
    """The same for a file."""
    if not is_s3(path):
        if os.path.isdir(absolute(path)):
            raise ConfigError(f"{path} is a folder; a file is needed: choose another {flag}")
        require_writable(os.path.dirname(absolute(path)), flag)


def not_supported(uri: str) -> str:
    """Why an address is refused, and what to write instead; credentials in it are not repeated."""
    scheme, separator, rest = uri.partition("://")
    shown = f"{scheme}://..." if separator and "@" in rest else uri
    if uri.startswith("~"):
        return f"{shown} begins with ~, which only a shell expands; write the whole path"
    if scheme.lower() in ("s3", "s3a", "s3n"):
        return f"{shown} is not supported; write s3://bucket/folder"
    if scheme.lower() == "file":
        return f"{shown} is not supported; write the path alone, without file://"
    return f"{shown} is not supported; a local path or s3://bucket/folder is needed"


def join(uri: str, *names: str) -> str:
    """A name below a folder URI."""
    return "/".join([uri.rstrip("/"), *names])


def open_input(uri: str) -> Any:
    """A seekable pyarrow file to read; raises FileNotFoundError. Read from S3 within ``s3.refusals``."""
    with _resolve(uri) as (filesystem, path):
        try:
            return filesystem.open_input_file(path)
        except pa.ArrowInvalid as error:  # a//b is a key of S3, but no path of Arrow's
            raise FileNotFoundError(f"{uri}: {error}") from None


def read_bytes(uri: str) -> bytes:
    """The whole object; raises FileNotFoundError."""
    with s3.refusals(uri), open_input(uri) as file:
        return bytes(file.read())


def written(data: bytes | pa.Buffer) -> Written:
    """What a write of these bytes leaves."""
    return Written(len(data), hashlib.sha256(data).hexdigest())


def write_bytes(uri: str, data: bytes | pa.Buffer) -> Written:
    """Write whole or not at all, replacing what was there."""
    if is_s3(uri):
        s3.put(uri, data)
    else:
        with _staged(absolute(uri), data) as (staged, path):
            os.replace(staged, path)
    return written(data)


def version(uri: str) -> str | None:
    """What changes whenever a file is written: its ETag, or its inode, time and size. None if there is no file."""
    if is_s3(uri):
        return s3.version(uri)
    try:
        found = os.stat(absolute(uri))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


def replace(uri: str, data: bytes | pa.Buffer, before: str | None) -> str | None:
    """Write whole or not at all if the file still has the version ``before``, where None stands for no file.

    Gives what ``remove_written`` takes, or None if the file has another version and stays as it is. On S3 this is one
    atomic step. On disk the folder's lock keeps others away between the comparison and the rename.
    """
    if is_s3(uri):
        return s3.put_if(uri, data, before)
    with _staged(absolute(uri), data) as (staged, path):
        if version(uri) != before:
            return None
        os.replace(staged, path)
    return version(uri)


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """What the disk refuses within, being full or not ours, is a StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise StorageError(
            f"{path} cannot be written: {error.strerror}; make room, or get the right to write, and the same command goes on"
        ) from None


@contextlib.contextmanager
def _staged(path: str, data: bytes | pa.Buffer) -> Iterator[tuple[str, str]]:
    """A file with the data beside ``path``, to be renamed to it within the block, and ``path``; on disk when it ends."""
    staged, folder = f"{path}.{uuid.uuid4().hex}.tmp", os.path.dirname(path)
    try:
        with writing(path):
            os.makedirs(folder, exist_ok=True)
            with open(staged, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield staged, path
            _sync_folder(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)


def _sync_folder(folder: str) -> None:
    """Put a rename on disk, where the file system can do that for a folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
    finally:
        os.close(opened)


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    with _resolve(uri) as (filesystem, path):
        return bool(filesystem.get_file_info(path).type != pa.fs.FileType.NotFound)


def list_files(uri: str, suffix: str = "") -> list[str]:
    """URIs of the files directly below a folder, sorted; empty where the folder is missing."""
    return sorted(each for each in sizes(uri) if each.endswith(suffix))


def sizes(uri: str) -> dict[str, int]:
    """Bytes of the files directly below a folder, by URI; one listing."""
    with _resolve(uri) as (filesystem, path):
        selector = pa.fs.FileSelector(path, allow_not_found=True)
        return {
            join(uri, info.base_name): info.size
            for info in filesystem.get_file_info(selector)
            if info.is_file
        }


def list_folders(uri: str) -> list[str]:
    """URIs of the folders directly below a folder, sorted."""
    with _resolve(uri) as (filesystem, path):
        selector = pa.fs.FileSelector(path, allow_not_found=True)
        found = [info for info in filesystem.get_file_info(selector) if info.type == pa.fs.FileType.Directory]
    return [join(uri, info.base_name) for info in sorted(found, key=lambda info: info.base_name)]


def list_tree(uri: str) -> list[str]:
    """URIs of all files below a folder, sorted; empty where the folder is missing."""
    with _resolve(uri) as (filesystem, path):
        selector = pa.fs.FileSelector(path, allow_not_found=True, recursive=True)
        paths = [info.path for info in filesystem.get_file_info(selector) if info.is_file]
    return sorted(join(uri, found[len(path.rstrip("/")) + 1 :]) for found in paths)


def remove_tree(uri: str) -> None:
    """Remove a folder and all below it; a folder that is not there is no error."""
    if is_s3(uri):
        for found in list_tree(uri):
            s3.delete(found)
        return
    with _resolve(uri) as (filesystem, path):
        if filesystem.get_file_info(path).type == pa.fs.FileType.Directory:
            filesystem.delete_dir(path)


def remove_file(uri: str) -> None:
    """Remove a file; one that is not there is no error."""
    if is_s3(uri):
        s3.delete(uri)
    else:
        with writing(uri), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(absolute(uri))


def remove_written(uri: str, wrote: str) -> None:
    """Remove a file if it is still the one that this ``replace`` wrote."""
    if is_s3(uri):
        s3.delete_written(uri, wrote)
    elif version(uri) == wrote:
        remove_file(uri)


def read_json(uri: str) -> dict[str, Any]:
    """A JSON object; raises FileNotFoundError, or DatasetError where it is damaged."""
    try:
        value = json.loads(read_bytes(uri))
    except ValueError as error:
        raise DatasetError(f"{uri} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{uri} holds a {type(value).__name__} where an object was expected")
    return value


def write_json(uri: str, value: Any) -> Written:
    """Write a JSON document."""
    return write_bytes(uri, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """A JSON document with sorted keys, so that equal content is equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=2) + "\n").encode()


@contextlib.contextmanager
def trusting(uri: str, expected: Expected, part: str = "") -> Iterator[None]:
    """Raise DatasetError if the file that is read within is damaged, StorageError if the disk or S3 refuses it.

    ``part`` names what is read of the file, for the message.
    """
    what = f"{uri}, {part}," if part else uri
    try:
        with s3.refusals(uri):
            yield
    except pa.ArrowMemoryError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{what} is not there; {expected.remedy}") from None
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise StorageError(
                f"{what} cannot be read: {error.strerror}; mend that and run it again"
            ) from None
        raise _damaged(what, " ".join(str(error).split())[:200], expected) from None


def _damaged(what: str, why: str, expected: Expected) -> DatasetError:
    return DatasetError(f"{what} is damaged: {why}; {expected.remedy}")


def open_parquet(uri: str, expected: Expected, **options: Any) -> pq.ParquetFile:
    """A Parquet file to read, of the size and footer that are expected; its pages are verified as they are read.

    Use within ``trusting``. There is no request more than without the checks: the size is known since the file was opened.
    """
    file = open_input(uri)
    if expected.bytes not in (None, file.size()):
        raise _damaged(uri, f"it has {file.size()} bytes, not {expected.bytes}", expected)
    about = None
    if expected.footer_sha256 is not None:
        tail = bytes(file.read_at(min(file.size(), TAIL), max(file.size() - TAIL, 0)))
        if len(tail) < (length := _footer_length(tail)):
            tail = bytes(file.read_at(length, file.size() - length))
        if hashlib.sha256(tail[-length:]).hexdigest() != expected.footer_sha256:
            raise _damaged(uri, "its footer is not the one that was written", expected)
        about = pq.read_metadata(pa.BufferReader(b"PAR1" + tail[-length:]))
    return pq.ParquetFile(file, metadata=about, page_checksum_verification=True, **options)


def _footer_length(data: bytes | pa.Buffer) -> int:
    """Bytes of a Parquet file's footer, with its length and the magic number that end the file."""
    return int.from_bytes(bytes(data[-8:-4]), "little") + 8


def footer_sha256(data: pa.Buffer) -> str:
    """The hash of the footer of a Parquet file."""
    return hashlib.sha256(data[len(data) - _footer_length(data) :]).hexdigest()


def read_table(
    uri: str,
    columns: list[str] | None = None,
    *,
    repetitive: list[str] | None = None,
    expected: Expected = Expected(),
) -> pa.Table:
    """A Parquet file, whole or some columns of it. Columns in ``repetitive`` come as dictionaries: each string is held once.

    Raises DatasetError if it is damaged: by its hash if it is read whole, by its size and the checksums of its pages if not.
    """
    with trusting(uri, expected):
        if columns is None and expected.sha256 is not None:
            data = read_bytes(uri)
            if (found := hashlib.sha256(data).hexdigest()) != expected.sha256:
                why = f"{len(data)} bytes have the sha256 {found[:12]}, not {expected.sha256[:12]}"
                raise _damaged(uri, why, expected)
            return pq.ParquetFile(pa.BufferReader(data), read_dictionary=repetitive).read()
        with open_parquet(uri, expected, read_dictionary=repetitive) as parquet:
            _require_columns(uri, parquet, columns, expected)
            return parquet.read(columns)


def _require_columns(
    uri: str, parquet: pq.ParquetFile, columns: list[str] | None, expected: Expected
) -> None:
    """Arrow leaves out columns that are not there."""
    for name in columns or []:
        if name not in parquet.schema_arrow.names:
            raise _damaged(uri, f"it has no column {name}", expected)


def read_tables(
    uris: Sequence[str], columns: list[str], expected: Expected | Sequence[Expected] = Expected()
) -> Iterator[list[pa.Table]]:
    """Columns of many Parquet files, some hundreds of files at a time, in order.

    Several are read at once, because on S3 each takes some round trips.
    """
    each = [expected] * len(uris) if isinstance(expected, Expected) else expected

    def read(uri: str, expected: Expected) -> pa.Table:
        return read_table(uri, columns, expected=expected)

    with ThreadPoolExecutor(READERS) as pool:
        for at in range(0, len(uris), FILES):
            yield list(pool.map(read, uris[at : at + FILES], each[at : at + FILES]))


def read_rows(
    uri: str, rows: NDArray[np.int64], columns: list[str] | None = None, expected: Expected = Expected()
) -> pa.Table:
    """Rows of a Parquet file by their numbers, in the order asked for; only their row groups are read, and verified."""
    with trusting(uri, expected), open_parquet(uri, expected, pre_buffer=True) as parquet:
        _require_columns(uri, parquet, columns, expected)
        about = parquet.metadata
        ends = _ends(about)
        if rows.max(initial=-1) >= min(about.num_rows, ends[-1] if len(ends) else 0):
            why = f"it holds {about.num_rows} rows, and row {rows.max()} is needed"
            raise _damaged(uri, why, expected)
        groups, back = np.unique(np.searchsorted(ends, rows, side="right"), return_inverse=True)
        sizes = np.diff(ends, prepend=0)[groups]
        skipped = ends[groups] - np.cumsum(sizes)  # rows of the file before a group that are not read
        return parquet.read_row_groups(groups.tolist(), columns).take(rows - skipped[back])


def row_group_ends(uri: str) -> list[int]:
    """The row after the last one of each row group of a Parquet file."""
    with trusting(uri, Expected()), open_parquet(uri, Expected()) as parquet:
        ends: list[int] = _ends(parquet.metadata).tolist()
    return ends


def _ends(about: pq.FileMetaData) -> NDArray[np.int64]:
    return np.cumsum(
        [about.row_group(number).num_rows for number in range(about.num_row_groups)], dtype=np.int64
    )


def gather(
    uris: Sequence[str],
    file: NDArray[np.int64],
    row: NDArray[np.int64],
    columns: list[str],
    expected: Expected = Expected(),
) -> pa.Table:
    """Rows of many Parquet files, each by the number of its file and its own, in the order asked for.

    Each file is opened once, and several at once.
    """
    order = np.argsort(file, kind="stable")
    numbers, starts = np.unique(file[order], return_index=True)
    chosen, rows = [uris[number] for number in numbers], np.split(row[order], starts[1:])
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(read_rows, chosen, rows, repeat(columns), repeat(expected))
        table = pa.concat_tables(tables).combine_chunks()  # or take() would hold three copies at once
    return table.take(np.argsort(order))


def write_table(uri: str, table: pa.Table, *, row_groups: Sequence[int] | int | None = None) -> Written:
    """Write a Parquet file, whole or not at all."""
    return write_bytes(uri, parquet(table, row_groups))


def parquet(table: pa.Table, row_groups: Sequence[int] | int | None = None) -> pa.Buffer:
    """A Parquet file in memory; ``row_groups`` are the sizes of its row groups, or one size for all of them.

    Photographs are compressed already, so ``image.bytes`` is stored as it is and readers get it without a copy.
    """
    leaves = dict.fromkeys(_leaves(table.schema), "zstd")
    leaves |= {
        path: "none" for path in leaves if path.endswith("image.bytes") or path.startswith("embedding")
    }
    sink, first = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(sink, table.schema, compression=leaves, write_page_checksum=True) as writer:
        if isinstance(row_groups, Sequence):
            for rows in row_groups:
                writer.write_table(table.slice(first, rows))
                first += rows
        else:
            writer.write_table(table, row_groups)
    return sink.getvalue()


def _leaves(schema: pa.Schema) -> list[str]:
    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty)
    parquet = pq.ParquetFile(pa.BufferReader(empty.getvalue())).schema
    return [parquet.column(i).path for i in range(len(parquet))]


@contextlib.contextmanager
def _resolve(uri: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URI and the path within it; what S3 refuses within is a StorageError."""
    if is_s3(uri):
        with s3.refusals(uri):
            yield s3.filesystem(), "/".join(s3.bucket_and_key(uri))
    else:
        yield pa.fs.LocalFileSystem(), absolute(uri)
