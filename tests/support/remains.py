"""What is left of a person below a folder, found by other means than erasure's own."""

from __future__ import annotations

import html
import json
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq

from facerec import records, storage
from facerec.photographs import canonical
from facerec.svm import load_svm
from tests.support.album import Photograph

COMMON = {"1", "7", "people", "train", "null", "Ann"}
"""Names that bytes of other things hold too: for these only the known places are looked at."""


def spellings(text: str) -> set[bytes]:
    """The text in both Unicode forms, as it is and as JSON and HTML escape it."""
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    escaped = [json.dumps(form)[1:-1] for form in forms] + [html.escape(form) for form in forms]
    slim = [json.dumps(form, ensure_ascii=False)[1:-1] for form in forms]
    return {form.encode() for form in [*forms, *escaped, *slim]}


def content(path: Path) -> bytes:
    """The bytes of a file; of a Parquet file all its values, as its pages are compressed."""
    if path.suffix == ".parquet":
        return (
            path.read_bytes()
            + json.dumps(pq.read_table(path).to_pydict(), default=repr, ensure_ascii=False).encode()
        )
    if path.suffix == ".skops":
        return json.dumps(load_svm(path.read_bytes()).classes_.tolist()).encode()
    return path.read_bytes()


def named_in(path: Path) -> set[str]:
    """Everybody whom a file names in its known places, canonical."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        names = {
            name
            for key in ("identity", "name")
            if key in table.column_names
            for name in table[key].to_pylist()
        }
    elif path.suffix == ".html":
        shown = records.read_page(path.read_text())
        names = set(shown.identities) if shown else set()
    elif path.suffix == ".skops":
        names = set(load_svm(path.read_bytes()).classes_.tolist())
    elif path.name in ("report.json", "run.json"):
        said = storage.read_json(str(path))
        names = set((records.in_run if path.name == "run.json" else records.in_report)(said).identities)
    elif path.name == "manifest.json":
        names = {
            name
            for each in storage.read_json(str(path)).get("label_conflicts", [])
            for name in each["identities"]
        }
    else:
        names = set()
    return {canonical(name) for name in names if name}


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")


def holds(path: Path, name: str, theirs: list[bytes]) -> bool:
    """Whether a file holds the person, by other means than erasure's."""
    data = content(path)
    marks = theirs if name in COMMON else [*theirs, *spellings(name)]
    return canonical(name) in named_in(path) or any(mark in data for mark in marks)


def marks(photographs: list[Photograph]) -> list[bytes]:
    """Addresses in all spellings, face ids and hashes of these photographs."""
    uris = {spelling for each in photographs for spelling in spellings(each.uri)}
    ids = [each.face_id.encode() for each in photographs if not each.reason]
    return [*uris, *ids, *(each.source_hash.encode() for each in photographs)]
