"""Files that facerec did not write: searched completely, and never changed, wherever they lie."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facerec import lock, storage
from facerec.erasure import foreign
from facerec.erasure.pipeline import EraseConfig, erase
from tests.support.album import photographs_of, write_album

TEXT = pa.array(["Bob", "by Ann"])
NESTED: dict[str, pa.Array] = {
    "large_list": pa.array([["Bob"], ["by Ann"]], pa.large_list(pa.large_string())),
    "fixed_size_list": pa.array([["Bob"], ["by Ann"]], pa.list_(pa.string(), 1)),
    "map": pa.array([[("Bob", "x")], [("x", "by Ann")]], pa.map_(pa.string(), pa.string())),
    "struct": pa.array([{"a": {"b": ["Bob"]}}, {"a": {"b": ["by Ann"]}}]),
    "dictionary": TEXT.dictionary_encode(),
    "binary": TEXT.cast(pa.binary()),
    "binary_list": pa.array([[b"Bob"], [b"by Ann"]], pa.large_list(pa.large_binary())),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """faces/ of three people."""
    write_album(tmp_path / "faces", photographs_of(("Ann", "Bob", "Zoe"), "/photos"), "/photos")
    return tmp_path


@pytest.mark.parametrize("kind", NESTED)
def test_every_kind_of_column_that_holds_text_is_searched(root: Path, kind: str) -> None:
    pq.write_table(pa.table({"x": NESTED[kind]}), root / "other.parquet")
    left = erase(EraseConfig(identity="Ann", root=[str(root)]))
    assert left == [f"MENTIONED in {root}/other.parquet, which facerec did not write"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_long_utf_16_text_is_searched_to_its_end(
    root: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "CHUNK", 1024)
    monkeypatch.setattr(foreign, "OVERLAP", 64)
    (root / "notes.txt").write_bytes(("\ufeff" + "x " * 5000 + "by Ann").encode(encoding))
    left = erase(EraseConfig(identity="Ann", root=[str(root)]))
    assert left == [f"MENTIONED in {root}/notes.txt, which facerec did not write"]


@pytest.mark.parametrize("name", ["notes.txt", "table.parquet"])
def test_a_file_that_cannot_be_opened_is_listed_and_everything_else_is_erased(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / name).write_text("of another user")
    works = storage.open_input

    def refused(uri: str) -> Any:
        if uri.endswith(f"/{name}"):
            raise PermissionError(errno.EACCES, "Permission denied", uri)
        return works(uri)

    monkeypatch.setattr(storage, "open_input", refused)
    first, journal = erase(EraseConfig(identity="Ann", root=[str(root)]))
    assert first.startswith(f"NOT CHECKED: {root}/{name}: ")
    assert "Permission denied" in first
    assert journal.startswith("what is theirs stays in")
    monkeypatch.undo()
    assert erase(EraseConfig(identity="Ann", root=[str(root)])) == []


def test_files_of_others_in_folders_with_our_names_are_neither_removed_nor_written(root: Path) -> None:
    """jobs/evaluate.py --out work/report.json leaves work/.lock, so work counts as a folder that a job writes into."""
    with lock.exclusive(str(root), "--out"):
        pass
    planted = {
        root / "generations" / "epoch1.txt": b"mine",
        root / "generations" / "0001" / "notes.txt": b"mine",
    }
    for path, data in planted.items():
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(data)
    (root / "parts").mkdir()
    mine = root / "parts" / "mine.parquet"
    pq.write_table(pa.table({"identity": ["Ann", "Bob"]}), mine)
    planted[mine] = mine.read_bytes()
    left = erase(EraseConfig(identity="Ann", root=[str(root)]))
    assert left == [f"MENTIONED in {mine}, which facerec did not write"]
    assert {path: path.read_bytes() for path in planted} == planted
