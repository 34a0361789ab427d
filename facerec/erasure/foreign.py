"""Files that facerec did not write: never changed, and searched as text for what is forgotten.

Pictures and weights are not searched, and compressed files are not opened.
"""

from __future__ import annotations

import functools
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

BATCH = 65_536
"""Rows of a Parquet file whose words are in memory at once."""
CHUNK, OVERLAP = 2**23, 2**14
"""Bytes of a file that are in memory at once, and how many of them are searched again with the next ones."""
SHORTEST = 3
"""Letters of a name below which a text says nothing about the person."""
JSON_ESCAPES = re.compile(r'(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))+')
DIGEST = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{32})(?![0-9a-f])")


def searchable(name: str) -> bool:
    """Whether a name is distinct enough to be looked for in texts."""
    return len(name) >= SHORTEST and not name.isdecimal()


def mentioning(uris: list[str], forgotten: Forgotten) -> list[str]:
    """Files that have the name as a whole word, an address, a face id or a hash of what is forgotten in them.

    Escapes of JSON and HTML are resolved, and both Unicode forms of a name are found.
    """
    wanted = _Wanted(forgotten)
    texts = [uri for uri in uris if not str(mimetypes.guess_type(uri)[0]).startswith("image/")]
    return [uri for uri in texts if _mentions(uri, wanted)]


def _mentions(uri: str, wanted: _Wanted) -> bool:
    try:
        return any(wanted.found_in(text) for text in _texts(uri))
    except FileNotFoundError:
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


@functools.lru_cache(1)
def _name(identity: str, longer: frozenset[str]) -> re.Pattern[str]:
    """The name as a whole word (group 1), or a longer name of somebody else that contains it."""
    others = [re.escape(name) for name in sorted(longer, key=len, reverse=True)]
    return re.compile(rf"(?<!\w)(?:{'|'.join([*others, f'({re.escape(identity)})'])})(?!\w)")


def _address(uri: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w/]){re.escape(uri)}(?!\w)")


def _texts(uri: str) -> Iterator[str]:
    if uri.endswith(".parquet"):
        try:
            yield from _words(uri)
            return
        except (pa.ArrowException, OSError):
            pass  # it is no Parquet file: whatever it is, its bytes are searched
    yield from _decoded(uri)


def _decoded(uri: str) -> Iterator[str]:
    """The file as text, chunk by chunk: as UTF-8, as UTF-16 where it says so, and as Latin-1 where it is not UTF-8."""
    with s3.refusals(uri), storage.open_input(uri) as file:
        rest = b""
        while chunk := bytes(file.read(CHUNK)):
            data = rest + chunk
            if data.startswith((b"\xff\xfe", b"\xfe\xff")):
                yield data.decode("utf-16", "replace")
            text = data.decode("utf-8", "replace")
            yield text
            if "\ufffd" in text:
                yield data.decode("latin-1")
            rest = data[-OVERLAP:]


def _words(uri: str) -> Iterator[str]:
    """The distinct strings of each column, one a line, some rows at a time."""
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
