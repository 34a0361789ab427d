"""Bytes by URI: local paths and s3:// behind the same few verbs, writes whole or not at all.

Local files are written beside their place and renamed; an S3 object appears only when its upload completes.
"""

from __future__ import annotations

import functools
import json
import os
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from facerec.errors import DatasetError


def is_s3(uri: str) -> bool:
    """Whether the URI lives in S3 (or something that speaks its protocol)."""
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """The URI as other processes must spell it: local paths become absolute, trailing slashes go."""
    return uri.rstrip("/") if is_s3(uri) else os.path.abspath(os.path.expanduser(uri))


def join(uri: str, *names: str) -> str:
    """A name below a folder URI."""
    return "/".join([uri.rstrip("/"), *names])


def open_input(uri: str) -> Any:
    """A seekable pyarrow file to read; raises FileNotFoundError."""
    filesystem, path = _resolve(uri)
    return filesystem.open_input_file(path)


def read_bytes(uri: str) -> bytes:
    """The whole object; raises FileNotFoundError."""
    with open_input(uri) as file:
        return bytes(file.read())


def write_bytes(uri: str, data: bytes) -> None:
    """Write whole or not at all, replacing what was there."""
    filesystem, path = _resolve(uri)
    if is_s3(uri):
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    staged = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(staged, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    finally:
        if os.path.exists(staged):
            os.unlink(staged)


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = _resolve(uri)
    return bool(filesystem.get_file_info(path).type != pa.fs.FileType.NotFound)


def list_files(uri: str, suffix: str = "") -> list[str]:
    """URIs of the files directly below a folder, sorted; empty where the folder is missing."""
    filesystem, path = _resolve(uri)
    selector = pa.fs.FileSelector(path, allow_not_found=True)
    names = [info.base_name for info in filesystem.get_file_info(selector) if info.is_file]
    return [join(uri, name) for name in sorted(names) if name.endswith(suffix)]


def list_folders(uri: str) -> list[str]:
    """URIs of the folders directly below a folder, sorted."""
    filesystem, path = _resolve(uri)
    selector = pa.fs.FileSelector(path, allow_not_found=True)
    found = [info for info in filesystem.get_file_info(selector) if info.type == pa.fs.FileType.Directory]
    return [join(uri, info.base_name) for info in sorted(found, key=lambda info: info.base_name)]


def remove_tree(uri: str) -> None:
    """Remove a folder and all below it; a folder that is not there is no error."""
    filesystem, path = _resolve(uri)
    if filesystem.get_file_info(path).type == pa.fs.FileType.Directory:
        filesystem.delete_dir(path)


def remove_file(uri: str) -> None:
    """Remove a file; one that is not there is no error."""
    filesystem, path = _resolve(uri)
    if filesystem.get_file_info(path).type == pa.fs.FileType.File:
        filesystem.delete_file(path)


def read_json(uri: str) -> dict[str, Any]:
    """A JSON object; raises FileNotFoundError, or DatasetError where it is damaged."""
    try:
        value = json.loads(read_bytes(uri))
    except ValueError as error:
        raise DatasetError(f"{uri} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{uri} holds a {type(value).__name__} where an object was expected")
    return value


def write_json(uri: str, value: Any) -> None:
    """Sorted keys, so equal content is equal bytes."""
    write_bytes(uri, (json.dumps(value, sort_keys=True, indent=2) + "\n").encode())


def read_table(
    uri: str, columns: list[str] | None = None, *, repetitive: list[str] | None = None
) -> pa.Table:
    """A Parquet file, whole. Columns in ``repetitive`` come as dictionaries: each string is held once."""
    with open_input(uri) as file:
        return pq.read_table(file, columns=columns, read_dictionary=repetitive)


def write_table(uri: str, table: pa.Table, *, row_groups: Sequence[int] | None = None) -> None:
    """A Parquet file, whole or not at all; ``row_groups`` are their sizes, by default Arrow's choice.

    Photographs are compressed already, so ``image.bytes`` is stored as it is and readers get it without a copy.
    """
    leaves = dict.fromkeys(_leaves(table.schema), "zstd")
    leaves |= {
        path: "none" for path in leaves if path.endswith("image.bytes") or path.startswith("embedding")
    }
    sink, first = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(sink, table.schema, compression=leaves, write_page_checksum=True) as writer:
        for rows in row_groups or [table.num_rows]:
            writer.write_table(table.slice(first, rows))
            first += rows
    write_bytes(uri, sink.getvalue().to_pybytes())


def _leaves(schema: pa.Schema) -> list[str]:
    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty)
    parquet = pq.ParquetFile(pa.BufferReader(empty.getvalue())).schema
    return [parquet.column(i).path for i in range(len(parquet))]


def _resolve(uri: str) -> tuple[Any, str]:
    if is_s3(uri):
        return _s3(), uri.removeprefix("s3://")
    return pa.fs.LocalFileSystem(), absolute(uri)


@functools.cache
def _s3() -> Any:
    """One filesystem a process, set by the variables that boto3 reads; Arrow by itself misses the endpoint."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options = {"region": region, "endpoint_override": endpoint}
    return pa.fs.S3FileSystem(**{name: value for name, value in options.items() if value})
