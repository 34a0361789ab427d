"""Everything that is no Parquet of a published folder: SVMs, pages, reports, runs and models; and what any file says."""

from __future__ import annotations

import contextlib
import html
import io
import json
import mimetypes
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facerec import s3, storage, svm
from facerec.erasure.forgotten import Forgotten
from facerec.errors import DatasetError
from facerec.lock import Fence

BATCH = 65_536
"""Rows of a Parquet file whose words are in memory at once."""
ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


def mentions(uri: str, forgotten: Forgotten) -> bool:
    """Whether any value of the file, escaped or not, names what is forgotten. Other files than Parquet are read whole.

    Photographs are not looked into, nor are the numbers of models and checkpoints: among so many, short names turn up.
    """
    return any(forgotten.mentioned(text) for text in _texts(uri))


def removable(uri: str, forgotten: Forgotten) -> bool:
    """Whether the file cannot be mended: an SVM that was fitted on them, a page that shows them."""
    if uri.endswith(".skops"):
        return bool(_known_to_svm(uri) & (forgotten.people | {forgotten.identity}))
    return uri.endswith(".html") and mentions(uri, forgotten)


def is_report(uri: str) -> bool:
    """Whether the file is a JSON document of ours with names in it: an evaluation's report or a run's record."""
    if uri.endswith("/run.json"):
        return True
    if not uri.endswith(".json") or uri.rsplit("/", 1)[-1] in ("manifest.json", "claim.json", "config.json"):
        return False
    try:
        return {"format", "versions", "verification"} <= storage.read_json(uri).keys()
    except DatasetError:
        return False


def mask(uri: str, forgotten: Forgotten, fence: Fence | None) -> None:
    """Write the JSON document with ERASED in the place of names; numbers stay, they were true of all people.

    A document of a folder that is locked is written behind its fence.
    """
    masked = _masked(storage.read_json(uri), forgotten)
    (fence.write_json if fence else storage.write_json)(uri, masked)


def trained_on(run: dict[str, Any], forgotten: Forgotten) -> bool:
    """Whether a run learnt from the people, or let them choose its checkpoint."""
    split = run.get("split", {})
    people = {*split.get("train", []), *split.get("validation", [])}
    return bool(people & (forgotten.people | {forgotten.identity}))


def weights(folder: str, files: list[str]) -> list[str]:
    """Models and checkpoints below a run's folder, but for the untrained control."""
    below = {uri.rsplit("/", 1)[0] for uri in files if uri.endswith((".safetensors", ".pt"))}
    return sorted(at for at in below if f"{at}/".startswith(f"{folder}/") and at != f"{folder}/untrained")


def _masked(value: Any, forgotten: Forgotten) -> Any:
    if isinstance(value, str):
        return forgotten.masked(value)
    if isinstance(value, list):
        return [_masked(each, forgotten) for each in value]
    if isinstance(value, dict):
        return {forgotten.masked(key): _masked(each, forgotten) for key, each in value.items()}
    return value


def _known_to_svm(uri: str) -> set[str]:
    try:
        return set(svm.load_svm(storage.read_bytes(uri)).classes_.tolist())
    except (DatasetError, AttributeError):
        return set()  # no SVM of ours


def _texts(uri: str) -> Iterator[str]:
    if uri.endswith(".parquet"):
        yield from _words(uri)
    elif uri.endswith(".skops"):
        yield "\n".join(map(str, sorted(_known_to_svm(uri))))
    elif uri.endswith((".json", ".jsonl")):
        yield from _json_strings(storage.read_bytes(uri))
    elif not str(mimetypes.guess_type(uri)[0]).startswith("image/"):
        text = _without_numbers(storage.read_bytes(uri)).decode("utf-8", "replace")
        yield text
        if uri.endswith(".html"):
            yield html.unescape(ESCAPED.sub(lambda found: chr(int(found[1], 16)), text))


def _json_strings(data: bytes) -> Iterator[str]:
    """Keys and values of a JSON document, or of one a line; a damaged one as it is."""
    try:
        documents = [json.loads(data)]
    except ValueError:
        try:
            documents = [json.loads(line) for line in data.splitlines()]
        except ValueError:
            yield data.decode("utf-8", "replace")
            return
    for document in documents:
        yield "\n".join(_strings(document))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
    elif isinstance(value, dict):
        yield from value
        for each in value.values():
            yield from _strings(each)


def _without_numbers(data: bytes) -> bytes:
    """The header of safetensors and all but the tensors of a checkpoint; other files whole."""
    if data[8:9] == b"{":
        (length,) = struct.unpack("<Q", data[:8])
        return data[8 : 8 + length] if length < len(data) else data
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as archive:
        return b"\n".join(archive.read(name) for name in archive.namelist() if "/data/" not in name)
    return data


def _words(uri: str) -> Iterator[str]:
    """The distinct strings of each column, a line each, some rows at a time."""
    with s3.refusals(uri), storage.open_input(uri) as file:
        parquet = pq.ParquetFile(file)
        for column in _string_leaves(parquet):
            for batch in parquet.iter_batches(BATCH, columns=[column]):
                values = batch.column(0)
                while pa.types.is_list(values.type) or pa.types.is_struct(values.type):
                    values = values.flatten() if pa.types.is_list(values.type) else values.flatten()[0]
                yield "\n".join(value for value in values.unique().to_pylist() if value)
        for key, value in (parquet.schema_arrow.metadata or {}).items():
            yield f"{key.decode()}\n{value.decode('utf-8', 'replace')}"


def _string_leaves(parquet: pq.ParquetFile) -> list[str]:
    leaves = (parquet.schema.column(number) for number in range(len(parquet.schema)))
    return [leaf.path for leaf in leaves if str(leaf.logical_type) == "String"]
