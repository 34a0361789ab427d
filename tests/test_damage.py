"""Files that were damaged after they were written: each is one line that says how to mend it, and that mends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from facerec import documents, ledger, publish, storage
from facerec.alignment import compaction
from facerec.embedding.config import EmbedConfig
from facerec.embedding.pipeline import embed_faces
from facerec.errors import DatasetError, FacerecError, MismatchError
from facerec.models.embedder import ModelConfig, build
from facerec.models.format import save_model
from facerec.training.config import TrainConfig
from facerec.training.index import FaceIndex
from facerec.training.loader import FaceStore
from facerec.training.plan import make_plan, record
from tests.support.aligner import FakeAligner, listing, write_parts
from tests.support.faces import write_faces

MODEL = ModelConfig(side=32)
COLUMNS = ["face_id", "identity", "image", "phash"]
JPEG = b"\xff\xd8\xff"
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "garbage": lambda data: b"\0" * len(data),
    "flipped": lambda data: data.replace(JPEG, JPEG[:-1] + b"\0", 1),
}


def damage(uri: str, how: str) -> None:
    data = Path(uri).read_bytes()
    Path(uri).write_bytes(DAMAGES[how](data))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_shard_is_named_with_numbers_and_the_job_that_mends_it(tmp_path: Path, how: str) -> None:
    faces = write_faces(tmp_path / "faces", 3, 3, side=32)
    store = FaceStore(faces, FaceIndex.read(faces))
    (uri,) = faces.uris("faces")
    size = Path(uri).stat().st_size
    damage(uri, how)
    found = Path(uri).stat().st_size
    why = f"it has {found} bytes, not {size}" if found != size else "footer|header|CRC|sha256 .*, not "
    for read in (
        lambda: faces.read("faces"),
        lambda: faces.read("faces", COLUMNS),
        lambda: faces.rows("faces-00000.parquet", np.arange(2), COLUMNS),
        lambda: store.read([0]),
    ):
        with pytest.raises(DatasetError) as caught:
            read()
        said = str(caught.value)
        assert "faces-00000.parquet" in said
        assert said.endswith("remove it and run jobs/align.py again")
        assert "\n" not in said
        assert any(word.strip() in said for word in why.split("|")) or "sha256" in said


def test_no_flipped_bit_gives_other_rows(tmp_path: Path) -> None:
    """Wherever it is, also in headers and the footer, of which Parquet has no checksum."""
    faces = write_faces(tmp_path / "faces", 3, 3, side=32)
    (uri,) = faces.uris("faces")
    good, wanted, noticed = Path(uri).read_bytes(), faces.read("faces", COLUMNS), 0
    for at in [*range(0, len(good), 67), *range(len(good) - 4900, len(good), 29)]:
        Path(uri).write_bytes(good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :])
        with pytest.raises(DatasetError, match="sha256"):
            faces.read("faces")
        try:
            assert faces.read("faces", COLUMNS).equals(wanted)  # the damage is in another column
        except DatasetError:
            noticed += 1
    assert noticed > 100


MANIFESTS: list[tuple[dict[str, Any], str]] = [
    ({"generation": "1"}, "generation is '1', not a whole number"),
    ({"generation": True}, "generation is True"),
    ({"files": None}, "files is None, not a list"),
    ({"files": [{"path": "x"}]}, r"it has no files\[0\]\.kind"),
    ({"files": [3]}, r"files\[0\] is 3, not an object"),
    ({"history": {}}, "history is {}, not a list"),
    ({"counts": 3}, "counts is 3, not an object"),
    (
        {"files": [{"path": "../x", "kind": "faces", "rows": 1, "bytes": 1, "sha256": ""}]},
        "names a file elsewhere",
    ),
]


@pytest.mark.parametrize("changes, why", MANIFESTS, ids=[why for _, why in MANIFESTS])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    faces = write_faces(tmp_path, 2, 2, side=32)
    uri = tmp_path / "manifest.json"
    uri.write_text(json.dumps(faces.manifest | changes))
    with pytest.raises(DatasetError, match=why) as caught:
        publish.open_dataset(str(tmp_path), "jobs/align.py")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("key", ["files", "generation", "history", "preprocessing", "counts"])
def test_a_manifest_without_a_key_is_one_line(tmp_path: Path, key: str) -> None:
    faces = write_faces(tmp_path / "faces", 12, 4, side=32)
    said = dict(faces.manifest)
    del said[key]
    (tmp_path / "faces" / "manifest.json").write_text(json.dumps(said))
    save_model(str(tmp_path / "model"), build(MODEL, 0), MODEL, faces.preprocessing, {})
    settings = {
        "faces": str(tmp_path / "faces"),
        "model": str(tmp_path / "model"),
        "out": str(tmp_path / "x"),
    }
    with pytest.raises(DatasetError, match=rf"manifest\.json.*has no {key}|not a published dataset"):
        embed_faces(EmbedConfig(**settings))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0"])
def test_a_manifest_that_is_no_document_is_one_line_that_says_what_to_do(tmp_path: Path, text: str) -> None:
    write_faces(tmp_path, 2, 2, side=32)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(
        DatasetError, match=r"restore it from a copy, or remove it and run jobs/align\.py again"
    ):
        publish.open_dataset(str(tmp_path), "jobs/align.py")


def compacted(folder: Path, photographs: Any) -> publish.Dataset:
    with publish.exclusive(str(folder), "--out") as fence:
        publish.claim(fence, {}, "--out")
        return compaction.compact(fence, photographs, {"preprocessing": {}}, 0)


@pytest.mark.usefixtures("ray_local")
def test_removing_what_is_damaged_and_aligning_again_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = listing(3, 10)
    write_parts(tmp_path, photographs.photographs, 8, FakeAligner())
    first = compacted(tmp_path, photographs)
    assert ledger.is_current(str(tmp_path), photographs.photographs)
    for number, kind in enumerate(("faces", "index", "rejects", "near_duplicates"), start=2):
        Path(publish.open_dataset(str(tmp_path), "").uris(kind)[0]).unlink()
        assert not ledger.is_current(str(tmp_path), photographs.photographs)
        assert f"{kind}" in capsys.readouterr().out
        now = compacted(tmp_path, photographs)
        assert (now.generation, now.digest) == (number, first.digest)
        assert now.read("faces").equals(first.read("faces") if number > 2 else now.read("faces"))
        assert ledger.is_current(str(tmp_path), photographs.photographs)
        first = now
    (tmp_path / "manifest.json").unlink()
    assert compacted(tmp_path, photographs).digest == first.digest


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("how", ["truncated", "empty", "garbage"])
def test_a_damaged_part_is_one_line_and_removing_it_mends_it(tmp_path: Path, how: str) -> None:
    photographs = listing(2, 4)
    write_parts(tmp_path, photographs.photographs, 4, FakeAligner())
    uri = publish.parts(str(tmp_path))[0]
    damage(uri, how)
    with pytest.raises(
        DatasetError, match=r"part-\w+\.parquet is damaged: .*; remove it, and the same command"
    ):
        ledger.missing(publish.parts(str(tmp_path)), photographs.photographs)
    Path(uri).unlink()
    missing = ledger.missing(publish.parts(str(tmp_path)), photographs.photographs)
    assert missing.num_rows == 4
    write_parts(tmp_path, missing, 4, FakeAligner())
    assert compacted(tmp_path, photographs).manifest["counts"]["photographs"] == 8


@pytest.mark.usefixtures("ray_local")
def test_a_part_that_is_replaced_while_it_is_read_gives_no_wrong_rows(tmp_path: Path) -> None:
    photographs = listing(2, 10)
    write_parts(tmp_path, photographs.photographs, 20, FakeAligner())
    found = ledger.account(publish.parts(str(tmp_path)), photographs.photographs)
    (uri,) = publish.parts(str(tmp_path))
    table = storage.read_table(uri)
    storage.write_table(uri, table.take(pa.array(range(table.num_rows - 1, -1, -1))))
    with pytest.raises(DatasetError, match="a part was replaced while it was read"):
        ledger.gather(publish.parts(str(tmp_path)), found.faces, ["face_id"])


def test_a_run_that_was_pinned_to_damaged_files_goes_on_with_the_same_ones(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 12, 4, side=32)
    config = TrainConfig(faces=faces.folder, run=str(tmp_path / "run"), model=MODEL, num_workers=0)
    record(make_plan(config))
    Path(faces.uris("faces")[0]).unlink()
    again = write_faces(tmp_path / "faces", 12, 4, side=32)
    assert (again.generation, again.digest) == (2, faces.digest)
    assert make_plan(config).dataset.generation == 2


RUNS: list[tuple[Any, str]] = [
    ({}, "it has no split"),
    ([], "where an object was expected|not an object"),
    ({"split": {"train": "Ada"}, "faces": {}}, "split.train is 'Ada', not a list"),
    ({"split": {"train": []}, "faces": {"folder": "x", "generation": None}}, "faces.generation is None"),
    ({"split": {"train": []}, "faces": {"folder": "x", "generation": 1}}, "it has no faces.digest"),
]


@pytest.mark.parametrize("said, why", RUNS, ids=[why for _, why in RUNS])
def test_a_damaged_record_of_a_run_is_one_line(tmp_path: Path, said: Any, why: str) -> None:
    faces = write_faces(tmp_path / "faces", 12, 4, side=32)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(said))
    config = TrainConfig(faces=faces.folder, run=str(tmp_path / "run"), model=MODEL, num_workers=0)
    with pytest.raises(DatasetError, match=why):
        make_plan(config)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_damaged_claim_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "claim.json").write_text(text)
    with pytest.raises((DatasetError, MismatchError)) as caught:
        publish.claimed(str(tmp_path), {"seed": 1}, "--out")
    assert "claim.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_report_without_a_key_or_with_a_wrong_type_is_one_line() -> None:
    for report in ({}, {"format": 5}, {"format": "5", "config": 3}, {"format": 5, "embeddings": {}}):
        with pytest.raises(FacerecError, match=r"r\.json is damaged \(\$.*run jobs/evaluate\.py again"):
            documents.require_report("r.json", report)


def test_a_shape_is_checked_to_its_depth() -> None:
    shape: documents.Shape = {"a": [{"b?": (int, float), "c": {"d": str}}]}
    for value in ({"a": []}, {"a": [{"c": {"d": "x"}}], "more": 1}, {"a": [{"b": 1.5, "c": {"d": ""}}]}):
        assert documents.fault(value, shape) == ""
    assert documents.fault({"a": [{"c": {"d": ""}}, {"c": {}}]}, shape) == "it has no a[1].c.d"
    assert documents.fault({"a": [{"b": None, "c": {"d": ""}}]}, shape) == (
        "a[0].b is None, not a whole number or float"
    )
    assert documents.fault(3, shape) == "the document is 3, not an object"
