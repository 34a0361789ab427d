"""Foundation files: splits, seeds, storage, publisher, perceptual hash."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facerec import publish, schema, storage
from facerec.errors import DatasetError, MismatchError, SourceError, StorageError
from facerec.lock import exclusive
from facerec.phash import perceptual_hash
from facerec.photographs import canonical
from facerec.seeding import derive
from facerec.splits import SplitConfig, split_identities
from facerec.telemetry import JsonLines


@pytest.mark.parametrize("count, unseen", [(5, 3), (8, 3), (40, 10), (85, 17), (1000, 200)])
def test_every_identity_is_on_one_side_and_small_sets_keep_enough_unseen(count: int, unseen: int) -> None:
    names = [f"person {i}" for i in range(count)]
    split = split_identities(names, SplitConfig())
    assert sorted(split.train + split.validation + split.unseen) == sorted(names)
    assert len(split.unseen) == unseen


def test_a_split_does_not_depend_on_the_order_of_names() -> None:
    names = [f"person {i}" for i in range(60)]
    assert split_identities(names, SplitConfig()) == split_identities(reversed(names), SplitConfig())


def test_too_few_identities_are_refused() -> None:
    with pytest.raises(SourceError, match="4 identities"):
        split_identities("abcd", SplitConfig())


def test_seeds_are_the_same_on_every_machine() -> None:
    assert derive("augment", 0, 7) == 519732701053664676
    assert derive("a", 1) != derive("a1")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(uri, None)  # type: ignore[arg-type]
    assert storage.read_bytes(uri) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, log = str(tmp_path / "file"), JsonLines(str(tmp_path / "log"), lambda _: True)
    storage.write_bytes(uri, b"old")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(StorageError, match=r"file cannot be written: No space left.*make room"):
        storage.write_bytes(uri, b"new")
    with pytest.raises(StorageError, match=r"log cannot be written: No space left"):
        log.append({"step": 1})
    assert storage.read_bytes(uri) == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "log"]


def test_a_written_file_and_its_name_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
    storage.write_bytes(str(tmp_path / "file"), b"new")
    assert len(synced) == 2
    assert synced[0].startswith(str(tmp_path / "file."))
    assert synced[1] == str(tmp_path)


def _full(_file: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_whose_lock_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with (
        pytest.raises(StorageError, match=r"cannot be written: .*choose another --run"),
        exclusive(str(tmp_path), "--run"),
    ):
        pass


def test_tables_come_back_as_they_went(tmp_path: Path) -> None:
    table = pa.table({"face_id": ["a"], "image": [{"bytes": b"x" * 1000, "path": "a.jpg"}]})
    storage.write_table(str(tmp_path / "t.parquet"), table)
    assert storage.read_table(str(tmp_path / "t.parquet")).equals(table)


def test_rows_come_in_the_order_asked_for_and_only_their_row_groups_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"name": [f"{n}" for n in range(20)], "face_id": [f"{n}" * 900 for n in range(20)]})
    storage.write_table(str(path), table, row_groups=4)
    rows = np.array([19, 4, 16, 7, 5, 4])
    about = pq.read_metadata(path)
    data = bytearray(path.read_bytes())
    for group in (0, 2, 3):
        column = about.row_group(group).column(0)
        first = column.dictionary_page_offset
        data[first : first + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    assert storage.read_rows(str(path), rows, ["name", "face_id"]).equals(table.take(rows))
    with pytest.raises(DatasetError, match=r"damaged.*page header.*restore it"):
        storage.read_rows(str(path), np.array([8]), ["name"])


def test_no_manifest_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no manifest\.json there.*jobs/align\.py"):
        publish.open_dataset(str(tmp_path), "jobs/align.py")


def test_a_folder_of_another_run_is_refused_by_the_setting_that_differs(tmp_path: Path) -> None:
    with exclusive(str(tmp_path / "x"), "--run") as fence:
        publish.claim(fence, {"margin": 0.2}, "--run")
        publish.claim(fence, {"margin": 0.2}, "--run")
        with pytest.raises(MismatchError, match=r"margin is 0\.2 there and 2\.0 here.*--run"):
            publish.claim(fence, {"margin": 2.0}, "--run")


def test_a_folder_with_foreign_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    with exclusive(str(tmp_path), "--faces") as fence, pytest.raises(MismatchError, match=r"thesis\.doc"):
        publish.claim(fence, {}, "--faces")


def test_preprocessing_that_differs_names_both_sides() -> None:
    ours = schema.Preprocessing().to_json()
    schema.require_same_preprocessing(ours, dict(ours), "the model", "the faces")
    with pytest.raises(MismatchError, match=r"the model and the faces.*side is 224 and 112"):
        schema.require_same_preprocessing(ours, {**ours, "side": 112}, "the model", "the faces")


def test_a_photograph_and_its_smaller_brighter_copy_hash_alike_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    pictures = [cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (200, 200)) for _ in range(20)]
    hashes = [perceptual_hash(picture) for picture in pictures]
    copies = [
        perceptual_hash(cv2.convertScaleAbs(cv2.resize(picture, (90, 90)), alpha=0.9, beta=8))
        for picture in pictures
    ]
    distances = np.array([[((a ^ b) & (2**64 - 1)).bit_count() for b in copies] for a in hashes])
    assert np.diag(distances).max() <= 12
    assert distances[~np.eye(20, dtype=bool)].min() > 12


def test_one_name_in_two_spellings_is_one_name() -> None:
    assert canonical(" Jose\u0301 ") == canonical("Jos\u00e9") == "Jos\u00e9"
