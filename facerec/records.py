"""Whom an artifact shows, and how that is recorded. Erasure uses these records. It does not search for names.

- Published folders (faces, embeddings, names): their columns are the record.
- HTML pages: a JSON element with the id ``facerec-shows`` in the head.
- report.json: the fields of ``REPORT_NAMES`` and ``REPORT_FACES``, summed up in the key ``shows``.
- run.json: the split, the fields of ``RUN_NAMES``.
- svm.skops: the classes of the SVM.
- Models and ONNX exports show nobody. They name the digest of the faces that they were trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

from facerec.errors import DatasetError

Path = tuple[str, ...]
"""Keys from the top of a JSON document; ``*`` stands for every key of an object and every element of a list."""
Change = Callable[[str], str]

ELEMENT = "facerec-shows"
"""The id of the page's element that holds its record."""
WITHOUT_RECORD = re.compile(r"facerec report|.*: aligned faces", re.DOTALL)
"""Titles of pages that facerec wrote before pages had records."""
HEAD_CHUNK = 2**16
"""Characters of a page that are parsed at once; the record is in the head."""

REPORT_FORMATS = (4, 5)
"""Formats of report.json whose fields are listed here."""
RUN_NAMES: tuple[Path, ...] = (("split", "*", "*"),)
"""Where run.json holds names. A report holds the run's record below ``run``."""
REPORT_NAMES: tuple[Path, ...] = (
    ("unseen_people", "*"),
    ("left_out_people", "*"),
    ("identification", "*", "people", "*"),
    ("identification", "*", "per_identity", "*", "identity"),
    ("identification", "*", "per_identity", "*", "taken_for"),
    ("identification", "*", "rejection", "strangers", "*"),
    ("leakage", "by_name", "*", "scored"),
    ("leakage", "by_name", "*", "seen"),
    ("leakage", "by_photograph", "*", "scored"),
    ("leakage", "by_photograph", "*", "seen"),
    ("verification", "*", "hardest", "*", "*", "faces", "*", "identity"),
    ("shows", "identities", "*"),
    *(("run", *path) for path in RUN_NAMES),
)
"""Where report.json holds names (facerec/evaluation/report.schema.json)."""
REPORT_FACES: tuple[Path, ...] = (
    ("verification", "*", "hardest", "*", "*", "faces", "*", "face_id"),
    ("shows", "face_ids", "*"),
)
"""Where report.json holds face ids."""
REPORT_SENTENCES: tuple[Path, ...] = (("identification", "*", "svm", "calibration", "refused"),)
"""Where older reports of the same format hold a sentence with one name in it."""
NAME_IN_SENTENCE = re.compile(r"(?<=training photograph, ).*(?= for one: no fold)", re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """The people, faces and photographs that an artifact shows."""

    identities: frozenset[str] = frozenset()
    face_ids: frozenset[str] = frozenset()
    source_uris: frozenset[str] = frozenset()
    """Photographs. A rejected photograph has no face id, and may have no name."""

    @classmethod
    def of(cls, rows: Iterable[dict[str, Any]]) -> Shown:
        """Of rows that have some of the columns identity, face_id and source_uri."""
        kept = list(rows)

        def values(column: str) -> frozenset[str]:
            return frozenset(row[column] for row in kept if row.get(column))

        return cls(values("identity"), values("face_id"), values("source_uri"))

    def __or__(self, other: Shown) -> Shown:
        return Shown(
            self.identities | other.identities,
            self.face_ids | other.face_ids,
            self.source_uris | other.source_uris,
        )

    def to_json(self) -> dict[str, list[str]]:
        """As it stands in documents and pages."""
        return {
            "identities": sorted(self.identities),
            "face_ids": sorted(self.face_ids),
            "source_uris": sorted(self.source_uris),
        }

    @classmethod
    def from_json(cls, said: Any) -> Shown:
        """What ``to_json`` gave; raises DatasetError for anything else."""
        try:
            lists = [said[name] for name in ("identities", "face_ids", "source_uris")]
        except (KeyError, TypeError):
            raise DatasetError("the record of whom it shows is damaged") from None
        if not all(isinstance(each, list) and all(isinstance(text, str) for text in each) for each in lists):
            raise DatasetError("the record of whom it shows is damaged")
        return cls(*map(frozenset, lists))


def in_report(report: dict[str, Any]) -> Shown:
    """Whom a report.json shows, by its known fields."""
    sentences = (NAME_IN_SENTENCE.search(text) for text in strings(report, REPORT_SENTENCES))
    names = {*strings(report, REPORT_NAMES), *(found[0] for found in sentences if found)}
    return Shown(frozenset(names), frozenset(strings(report, REPORT_FACES)))


def in_run(run: dict[str, Any]) -> Shown:
    """Whom a run.json names."""
    return Shown(frozenset(strings(run, RUN_NAMES)))


def changed_report(report: dict[str, Any], name: Change, face_id: Change) -> dict[str, Any]:
    """The report with other names and face ids in its known fields; keys and all other values stay as they are."""
    report = changed(changed(report, REPORT_NAMES, name), REPORT_FACES, face_id)
    return changed(
        report, REPORT_SENTENCES, lambda text: NAME_IN_SENTENCE.sub(lambda found: name(found[0]), text)
    )


def changed_run(run: dict[str, Any], name: Change) -> dict[str, Any]:
    """The run's record with other names in its known fields."""
    return changed(run, RUN_NAMES, name)


def strings(document: Any, paths: Iterable[Path]) -> Iterator[str]:
    """The strings of a JSON document at some paths; what is not there is left out."""
    for path in paths:
        yield from _at(document, path)


def changed(document: dict[str, Any], paths: Iterable[Path], change: Change) -> dict[str, Any]:
    """The document with ``change`` applied to the strings at some paths."""
    for path in paths:
        document = _changed(document, path, change)
    return document


def _at(value: Any, path: Path) -> Iterator[str]:
    if not path:
        if isinstance(value, str):
            yield value
        return
    if isinstance(value, list):
        children = value if path[0] == "*" else []
    elif isinstance(value, dict):
        children = [each for key, each in value.items() if path[0] in ("*", key)]
    else:
        children = []
    for each in children:
        yield from _at(each, path[1:])


def _changed(value: Any, path: Path, change: Change) -> Any:
    if not path:
        return change(value) if isinstance(value, str) else value
    if isinstance(value, list) and path[0] == "*":
        return [_changed(each, path[1:], change) for each in value]
    if isinstance(value, dict):
        return {
            key: _changed(each, path[1:], change) if path[0] in ("*", key) else each
            for key, each in value.items()
        }
    return value


def read_page(text: str) -> Shown | None:
    """Whom a page of facerec shows; None for a page that facerec did not write.

    Raises DatasetError for a page of facerec that has no record, or a damaged one.
    """
    head = _Head()
    for at in range(0, len(text), HEAD_CHUNK):
        head.feed(text[at : at + HEAD_CHUNK])
        if head.ended:
            break
    if head.record is None:
        if WITHOUT_RECORD.fullmatch(head.title.strip()):
            raise DatasetError("the page has no record of whom it shows")
        return None
    try:
        return Shown.from_json(json.loads(head.record))
    except ValueError:
        raise DatasetError("the record of whom it shows is damaged") from None


class _Head(HTMLParser):
    """The title and the record of a page, and whether the head has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.title, self.record, self.ended = "", None, False
        self._within = ""

    record: str | None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ended |= tag == "body"
        self._within = tag
        if tag == "script" and ("id", ELEMENT) in attrs and self.record is None and not self.ended:
            self._within, self.record = ELEMENT, ""

    def handle_endtag(self, tag: str) -> None:
        self.ended |= tag == "head"
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == ELEMENT and self.record is not None:
            self.record += data
        elif self._within == "title" and not self.ended:
            self.title += data


def onnx_metadata(data: bytes) -> dict[str, str]:
    """``metadata_props`` of an ONNX file (field 14 of ModelProto), read without the onnx package.

    Raises DatasetError for bytes that are no such file.
    """
    try:
        entries = [dict(_fields(value)) for number, value in _fields(data) if number == 14]
        return {entry[1].decode(): entry.get(2, b"").decode() for entry in entries}
    except (IndexError, KeyError, ValueError):
        raise DatasetError("it is not a readable ONNX file") from None


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the length-delimited fields of a protocol buffer; numbers are skipped."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError
            yield key >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError
