"""A run of twelve people with difficult names: of the one who is erased nothing is left, of the others all is as before."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from facerec import publish, records, storage
from facerec.erasure.pipeline import EraseConfig, erase
from facerec.photographs import canonical
from facerec.reporting.page import write_report
from tests.support.album import LONG, NAMES, Photograph, report_of
from tests.support.remains import files, holds, marks


def rows_of(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """All rows of one kind, by their face id, or by the address of a reject."""
    rows = publish.open_dataset(str(folder), "").read(kind).to_pylist()
    return {row.get("face_id") or row["source_uri"]: row for row in rows}


def same_but_masked(before: Any, after: Any, name: str, ids: set[str]) -> bool:
    """Whether two JSON values differ in nothing but the person's name and face ids."""
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = ((before[key], after.get(key)) for key in before if key != "shows")
        return before.keys() == after.keys() and all(same_but_masked(*pair, name, ids) for pair in pairs)
    if isinstance(before, list) and isinstance(after, list):
        pairs = zip(before, after, strict=False)
        return len(before) == len(after) and all(same_but_masked(*pair, name, ids) for pair in pairs)
    if after == "(erased)":
        return canonical(before) == canonical(name) or before in ids
    return bool(before == after) and type(before) is type(after)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_one_is_left_and_everything_of_the_others_is_as_before(
    name: str, work: Path, twelve: tuple[Path, list[Photograph]]
) -> None:
    photographs = [each for each in twelve[1] if each.identity == name]
    ids = {each.face_id for each in photographs if not each.reason}
    theirs = marks(photographs)
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in files(work)}
    untouched = {path for path in before if not holds(path, name, theirs) and path.name != "manifest.json"}
    assert {path.name for path in before} - {path.name for path in untouched} >= {
        "report.json",
        "run.json",
        "svm.skops",
    }
    kinds = [("faces", "faces"), ("faces", "rejects"), ("embeddings", "embeddings"), ("names", "names")]
    rows = {(folder, kind): rows_of(work / folder, kind) for folder, kind in kinds}
    documents = {path: storage.read_json(f"{work}/{path}") for path in ("report.json", "run/run.json")}

    assert erase(EraseConfig(identity=unicodedata.normalize("NFC", name), root=[str(work)])) == []

    assert not [path for path in files(work) if holds(path, name, theirs)]
    for (folder, kind), wanted in rows.items():
        left = {
            key: row
            for key, row in wanted.items()
            if row["source_uri"] not in {each.uri for each in photographs}
        }
        assert rows_of(work / folder, kind) == left
    for path in untouched:
        assert hashlib.sha256(path.read_bytes()).digest() == before[path], path
    for uri, said in documents.items():
        assert same_but_masked(said, storage.read_json(f"{work}/{uri}"), name, ids)


@pytest.mark.parametrize("name", ["people", "1", "train", LONG])
def test_the_masked_report_still_makes_a_page(name: str, work: Path) -> None:
    assert erase(EraseConfig(identity=name, root=[str(work)])) == []
    page = Path(write_report(report_of(work)))
    shown = records.read_page(page.read_text())
    assert shown is not None
    assert name not in shown.identities
    assert len(shown.identities - {"(erased)"}) == len(NAMES) - 1
    assert storage.read_json(f"{work}/run/run.json")["preprocessing"]["normalization"] == "x / 127.5 - 1"
    assert storage.read_json(f"{work}/run/run.json")["code_version"] == "0.1.0"


def test_weights_are_listed_by_run_and_by_digest(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "run" / "model").rename(work / "copied")
    assert erase(EraseConfig(identity="people", root=[str(work)], dry_run=True)) == []
    said = capsys.readouterr().out
    for uri in ("copied", "model.onnx"):
        assert f"stays: {work}/{uri} was trained on faces that held them" in said
    assert "untrained was trained" not in said
    assert (
        erase(EraseConfig(identity="train", root=[str(work)], dry_run=True)) == []
    )  # unseen, but in those faces
    assert f"stays: {work}/run/untrained" not in capsys.readouterr().out
