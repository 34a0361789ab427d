"""Files that facerec did not write: never changed, and searched as text for what is forgotten.

Pictures and weights are not searched, and compressed files are not opened.
"""

from __future__ import annotations

import html
import json
import mimetypes
import re
import unicodedata
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from facerec import s3, storage
from facerec.erasure.forgotten import Forgotten
from facerec.errors import StorageError

BATCH, BINARY_BATCH = 65_536, 256
"""Rows of a Parquet column that are in memory at once: of text, and of bytes, which may be pictures."""
CHUNK, OVERLAP = 2**23, 2**14
"""Bytes of a file that are in memory at once, and how many of them are searched again with the next ones."""
SHORTEST = 3
"""Letters of a name below which a text says nothing about the person."""
WIDE = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
"""Encodings of a text by the two bytes that it begins with."""
JSON_ESCAPES = re.compile(r'(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))+')
DIGEST = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{32})(?![0-9a-f])")


def searchable(name: str) -> bool:
    """Whether a name is distinct enough to be looked for in texts."""
    return len(name) >= SHORTEST and not name.isdecimal()


def mentioning(uris: list[str], forgotten: Forgotten, problems: dict[str, str]) -> list[str]:
    """Files that have the name as a whole word, an address, a face id or a hash of what is forgotten in them.

    Escapes of JSON and HTML are resolved, and both Unicode forms of a name are found. Files that cannot be read are added
    to ``problems``, with the reason.
    """
    wanted = _Wanted(forgotten)
    texts = [uri for uri in uris if not str(mimetypes.guess_type(uri)[0]).startswith("image/")]
    return [uri for uri in texts if _mentions(uri, wanted, problems)]


def _mentions(uri: str, wanted: _Wanted, problems: dict[str, str]) -> bool:
    try:
        return any(wanted.found_in(text) for text in _texts(uri))
    except FileNotFoundError:
        return False
    except StorageError as refused:
        if refused.code not in s3.OF_ONE_OBJECT:
            raise
        problems[uri] = f"facerec did not write it, and it cannot be searched: {refused}"
    except (pa.ArrowException, OSError) as error:
        problems[uri] = (
            f"facerec did not write it, and it cannot be searched: {' '.join(str(error).split())[:200]}"
        )
    return False


class _Wanted:
    """What is looked for."""

    def __init__(self, forgotten: Forgotten) -> None:
        self._ids = forgotten.face_ids | forgotten.hashes
        self._uris: dict[str, list[str]] = {}
        spelled = {unicodedata.normalize("NFC", uri) for uri in forgotten.spelled}
        for uri in forgotten.uris | forgotten.copies | spelled:
            self._uris.setdefault(uri.rpartition("/")[0], []).append(uri)
        self._name = _name(forgotten.identity, forgotten.longer) if searchable(forgotten.identity) else None

    def found_in(self, text: str) -> bool:
        """Whether any of it is in the text, escaped or not."""
        plain = JSON_ESCAPES.sub(lambda found: str(json.loads(f'"{found[0]}"')), text)
        texts = dict.fromkeys([text, plain, html.unescape(plain)])
        return any(self._in(unicodedata.normalize("NFC", each)) for each in texts)

    def _in(self, text: str) -> bool:
        if self._name and any(found[1] for found in self._name.finditer(text)):
            return True
        if self._ids and any(found[0] in self._ids for found in DIGEST.finditer(text)):
            return True
        return any(
            uri in text and _address(uri).search(text)
            for folder, uris in self._uris.items()
            if folder in text
            for uri in uris
        )


def _name(identity: str, longer: frozenset[str]) -> re.Pattern[str]:
    """The name as a whole word (group 1), or a longer name of somebody else that contains it."""
    others = [re.escape(name) for name in sorted(longer, key=len, reverse=True)]
    return re.compile(rf"(?<!\w)(?:{'|'.join([*others, f'({re.escape(identity)})'])})(?!\w)")


def _address(uri: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w/]){re.escape(uri)}(?!\w)")


def _texts(uri: str) -> Iterator[str]:
    with s3.refusals(uri), storage.open_input(uri) as file:
        if uri.endswith(".parquet") and (parquet := _parquet(file)):
            yield from _words(parquet)
        else:
            file.seek(0)
            yield from _decoded(file)


def _parquet(file: pa.NativeFile) -> pq.ParquetFile | None:
    """None for a file that is not Parquet, whatever its name is."""
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid:
        return None


def _decoded(file: pa.NativeFile) -> Iterator[str]:
    """The file as text, chunk by chunk: as UTF-8, as UTF-16 if it begins so, and as Latin-1 where it is not UTF-8."""
    rest, wide = b"", None
    while chunk := bytes(file.read(CHUNK)):
        wide = wide if rest else WIDE.get(chunk[:2])  # of the first chunk
        data = rest + chunk
        if wide:
            yield data.decode(wide, "replace")
        text = data.decode("utf-8", "replace")
        yield text
        if "\ufffd" in text:
            yield data.decode("latin-1")
        rest = data[-OVERLAP:]


def _words(parquet: pq.ParquetFile) -> Iterator[str]:
    """The distinct strings of each column, one a line, some rows at a time."""
    for column in (parquet.schema.column(number) for number in range(len(parquet.schema))):
        if column.physical_type != "BYTE_ARRAY":
            continue
        rows = BATCH if str(column.logical_type) == "String" else BINARY_BATCH
        for batch in parquet.iter_batches(rows, columns=[column.path]):
            values = batch.column(0)
            while pa.types.is_nested(values.type):
                values = values.flatten()[0] if pa.types.is_struct(values.type) else values.flatten()
            words = [value for value in values.unique().to_pylist() if value]
            yield "\n".join(
                word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word) for word in words
            )
    for key, value in (parquet.schema_arrow.metadata or {}).items():
        yield f"{key.decode()}\n{value.decode('utf-8', 'replace')}"
