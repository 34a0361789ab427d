"""What cannot be read, is being written, or lies where no listing shows it: nothing of it is passed over in silence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from facerec import lock, publish, s3, storage
from facerec.erasure.pipeline import EraseConfig, erase
from facerec.errors import BusyError, ConfigError
from facerec.records import Shown
from tests.support.album import Photograph, onnx, photographs_of, write_album, write_vectors
from tests.support.generations import generation
from tests.support.pages import write_page
from tests.support.s3 import Faults, s3_server

JOB = Path(__file__).parents[2] / "jobs" / "erase.py"
ANN = photographs_of(("Ann",), "/photos")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """faces/ and embeddings/ of three people."""
    photographs = [*ANN, *photographs_of(("Bob", "Zoe"), "/photos")]
    write_vectors(tmp_path / "embeddings", write_album(tmp_path / "faces", photographs, "/photos"))
    return tmp_path


def held(root: Path) -> set[str]:
    """Everybody in the current rows and the parts that can be read."""
    found: set[str] = set()
    for path in root.rglob("*.parquet"):
        try:
            table = storage.read_table(str(path))
        except (OSError, pa.ArrowException):
            continue
        found |= set(table["identity"].to_pylist()) if "identity" in table.column_names else set()
    return found


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def an_svm(root: Path) -> Path:
    (root / "svm.skops").write_bytes(b"PK\x05\x06 not an SVM")
    return root / "svm.skops"


def an_svm_of_foreign_types(root: Path) -> Path:
    import skops.io

    (root / "other.skops").write_bytes(skops.io.dumps({"classes": ["Ann"]}))
    return root / "other.skops"


def a_page_without_a_record(root: Path) -> Path:
    (root / "report.html").write_text("<head><title>facerec report</title></head><body>A&#110;n</body>")
    return root / "report.html"


def a_page_with_a_damaged_record(root: Path) -> Path:
    page = '<head><title>facerec report</title><script id="facerec-shows">{"identities": [</script></head>'
    (root / "page.html").write_text(page)
    return root / "page.html"


def a_manifest(root: Path) -> Path:
    cut(root / "embeddings" / "manifest.json")
    return root / "embeddings" / "manifest.json"


def a_manifest_without_keys(root: Path) -> Path:
    uri = root / "embeddings" / "manifest.json"
    storage.write_json(str(uri), storage.read_json(str(uri)) | {"files": [{"kind": "embeddings"}]})
    return uri


def a_manifest_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Path]:
    def a_damaged_manifest(root: Path) -> Path:
        uri = root / "embeddings" / "manifest.json"
        said = storage.read_json(str(uri))
        change(said)
        storage.write_json(str(uri), said)
        return uri

    return a_damaged_manifest


def a_journal_without_keys(root: Path) -> Path:
    (root / ".erasing-0123456789ab.json").write_text("{}")
    return root / ".erasing-0123456789ab.json"


def a_report_that_shows_nothing(root: Path) -> Path:
    storage.write_json(f"{root}/r.json", {"format": 5, "versions": {}, "verification": {}, "shows": None})
    return root / "r.json"


def a_part(root: Path) -> Path:
    path = sorted((root / "faces" / "parts").iterdir())[0]
    cut(path)
    return path


def a_shard(root: Path) -> Path:
    path = next((root / "embeddings" / "generations").rglob("*-00000.parquet"))
    cut(path)
    return path


def a_record_of_a_run(root: Path) -> Path:
    (root / "run").mkdir()
    (root / "run" / "run.json").write_text('{"split": {"train": ["Ann"')
    return root / "run" / "run.json"


def a_report_of_another_version(root: Path) -> Path:
    storage.write_json(f"{root}/old.json", {"format": 99, "versions": {}, "verification": {}})
    return root / "old.json"


def an_export_without_a_record(root: Path) -> Path:
    (root / "model.onnx").write_bytes(onnx({"model_id": "0123"}))
    return root / "model.onnx"


def a_damaged_export(root: Path) -> Path:
    (root / "model.onnx").write_bytes(b"\xff\xff")
    return root / "model.onnx"


UNREADABLE = [
    an_svm, an_svm_of_foreign_types, a_page_without_a_record, a_page_with_a_damaged_record, a_manifest,
    a_manifest_without_keys, a_part, a_shard, a_record_of_a_run, a_report_of_another_version, an_export_without_a_record,
    a_damaged_export, a_journal_without_keys, a_report_that_shows_nothing,
    a_manifest_with(lambda said: said.pop("history")),
    a_manifest_with(lambda said: said.update(history=["x"])),
    a_manifest_with(lambda said: said["history"][0].update(path="../x")),
    a_manifest_with(lambda said: said.update(label_conflicts="x")),
    a_manifest_with(lambda said: said["files"][0].pop("bytes")),
    a_manifest_with(lambda said: said["files"][0].update(rows="7")),
    a_manifest_with(lambda said: said["files"][0].update(path="../x")),
    a_manifest_with(lambda said: said["files"][0].update(path=7)),
]  # fmt: skip


@pytest.mark.parametrize("plant", UNREADABLE)
def test_what_cannot_be_read_is_listed_and_everything_else_is_erased(
    root: Path, plant: Callable[[Path], Path]
) -> None:
    damaged = plant(root)
    left = erase(EraseConfig(identity="Ann", root=[str(root)]))
    assert any(line.startswith(f"NOT CHECKED: {damaged}: ") and "remove it" in line for line in left)
    journal = left.pop()
    assert journal.startswith(f"what is theirs stays in {root}/.erasing-")
    assert not [line for line in left if str(damaged) not in line and not line.startswith("STILL THERE")]
    spared = {root / "embeddings" / "generations"} if "manifest" in plant.__name__ else set()
    for path in root.rglob("*.parquet"):
        if path != damaged and not spared & set(path.parents):
            assert b"Ann" not in b"".join(
                str(row).encode() for row in storage.read_table(str(path)).to_pylist()
            )
    if {"parts", "generations"} & set(damaged.parts) or "manifest" in plant.__name__:
        return  # to make these again takes alignment or embedding
    damaged.unlink()
    assert erase(EraseConfig(identity="Ann", root=[str(root)])) == []
    with pytest.raises(ConfigError, match="nothing below"):
        erase(EraseConfig(identity="Ann", root=[str(root)]))


def test_names_that_come_back_from_a_backup_are_erased_by_the_journal(work: Path) -> None:
    """A row of names holds no identity. Once the faces are gone, only the journal knows whose it was."""
    names = work / "names"
    (shard,) = [path for path in names.rglob("*-00000.parquet") if b"/1/0.jpg" in repr_of(path)]
    good = shard.read_bytes()
    shard.write_bytes(good[:-40])
    assert erase(EraseConfig(identity="1", root=[str(work)]))
    assert b"/1/0.jpg" not in b"".join(repr_of(path) for path in work.rglob("*.parquet") if path != shard)
    shard.write_bytes(good)
    assert erase(EraseConfig(identity="1", root=[str(work)])) == []
    assert b"/1/0.jpg" not in b"".join(map(repr_of, work.rglob("*.parquet")))


def repr_of(path: Path) -> bytes:
    return str(storage.read_table(str(path)).to_pylist()).encode()


def test_the_job_leaves_with_1_where_something_cannot_be_read(root: Path) -> None:
    an_svm(root)
    command = [sys.executable, str(JOB), "--identity", "Ann", "--root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert f"erase: NOT CHECKED: {root}/svm.skops: not an SVM" in done.stdout
    assert "any more" not in done.stdout
    assert held(root) == {"Bob", "Zoe"}


def test_torn_writes_go_and_files_of_others_stay(root: Path) -> None:
    torn = [
        root / f"report.html.{'0f' * 16}.tmp",
        root / "faces" / "parts" / f"part-1.parquet.{'a1' * 16}.tmp",
    ]
    for path in torn:
        path.write_bytes(b"anything")
    kept = [root / "notes.tmp", root / "faces" / "draft.tmp"]
    for path in kept:
        path.write_bytes(b"something else")
    assert erase(EraseConfig(identity="Ann", root=[str(root)])) == []
    assert not any(path.exists() for path in torn)
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("claim", [True, False])
def test_a_job_that_has_claimed_its_folder_and_written_nothing_is_busy(root: Path, claim: bool) -> None:
    folder = str(root / "vectors")
    with lock.exclusive(folder, "--out"):
        if claim:
            storage.write_json(f"{folder}/claim.json", {"faces": f"{root}/faces"})
        with pytest.raises(BusyError, match=r"vectors is being written"):
            erase(EraseConfig(identity="Ann", root=[str(root)]))
    assert held(root) == {"Ann", "Bob", "Zoe"}
    assert erase(EraseConfig(identity="Ann", root=[str(root)])) == []


def test_a_job_that_begins_while_erasure_waits_for_its_locks_is_busy_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exclusive, other = lock.exclusive, lock.exclusive(f"{root}/vectors", "--out")

    def slow(folder: str, what: str, *more: Any, **named: Any) -> Any:
        if folder.endswith("/faces"):
            other.__enter__()
        return exclusive(folder, what, *more, **named)

    monkeypatch.setattr(lock, "exclusive", slow)
    with pytest.raises(BusyError, match=r"vectors is being written"):
        erase(EraseConfig(identity="Ann", root=[str(root)]))
    other.__exit__(None, None, None)


def test_a_page_of_a_face_without_a_name_goes_by_its_record(root: Path) -> None:
    write_page(root / "map.html", Shown(face_ids=frozenset([ANN[0].face_id])))
    write_page(root / "reject.html", Shown(source_uris=frozenset([ANN[-1].uri])))
    write_page(
        root / "others.html",
        Shown(frozenset(["Bob"]), frozenset(["0" * 32]), frozenset(["/photos/Bob/Ann/1.jpg"])),
    )
    before = (root / "others.html").read_bytes()
    assert erase(EraseConfig(identity="Ann", root=[str(root)])) == []
    assert not (root / "map.html").exists()
    assert not (root / "reject.html").exists()
    assert (root / "others.html").read_bytes() == before


@pytest.mark.parametrize("said", [
    "José", "Jose\u0301", '{"who": "Jos\\u00e9"}', '{"who": "Jose\\u0301"}', "<td>Jos&eacute;</td>", "<td>Jos&#233;</td>",
    '<script>{"n": "Jos\\u00e9"}</script>',
])  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_a_foreign_file_that_mentions_them_is_named_and_stays(
    tmp_path: Path, said: str, encoding: str
) -> None:
    try:
        data = f"ask {said}, please".encode(encoding)
    except UnicodeEncodeError:
        pytest.skip(f"{encoding} has no combining accents")
    write_album(tmp_path / "faces", photographs_of(("José", "Zoe"), "/photos"), "/photos")
    (tmp_path / "notes.html").write_bytes(data)
    left = erase(EraseConfig(identity="José", root=[str(tmp_path)]))
    assert left == [f"MENTIONED in {tmp_path}/notes.html, which facerec did not write"]
    assert (tmp_path / "notes.html").read_bytes() == data


def test_a_foreign_parquet_is_searched_and_never_written(root: Path) -> None:
    for name, value in (
        ("who", "Ann"),
        ("face", ANN[0].face_id),
        ("photo", ANN[-1].uri),
        ("hash", ANN[0].source_hash),
    ):
        storage.write_table(f"{root}/{name}.parquet", pa.table({"identity": ["Bob"], "x": [[value]]}))
    storage.write_table(f"{root}/others.parquet", pa.table({"identity": ["Bob"], "x": ["Annabel"]}))
    before = {path: path.read_bytes() for path in root.glob("*.parquet")}
    left = erase(EraseConfig(identity="Ann", root=[str(root)]))
    assert sorted(left) == [
        f"MENTIONED in {root}/{name}.parquet, which facerec did not write"
        for name in ("face", "hash", "photo", "who")
    ]
    assert {path: path.read_bytes() for path in root.glob("*.parquet")} == before


@pytest.mark.parametrize("said", [
    '{"source": "https://example.org"}', '{"source": 7, "faces": []}', "[]", '{"source": "s3://key:secret@bucket/x"}',
])  # fmt: skip
def test_a_claim_of_another_program_is_no_reason_to_stop(root: Path, said: str) -> None:
    (root / "other").mkdir()
    (root / "other" / "claim.json").write_text(said)
    for name, text in (("manifest.json", '{"name": "a web application"}'), ("run.json", '{"split": null}')):
        (root / name).write_text(text)
    assert erase(EraseConfig(identity="Ann", root=[str(root)])) == []


def test_the_journal_of_another_erasure_of_theirs_is_listed(root: Path) -> None:
    journal = f"{root}/.erasing-0123456789ab.json"
    storage.write_json(journal, {"identity": "Zoe", "people": ["Ann"], "trained": []})
    line, _ = erase(EraseConfig(identity="Ann", root=[str(root)]))
    assert line.startswith(f"NOT CHECKED: {journal}: an erasure was killed")


def test_an_unreadable_folder_of_old_rows_is_no_reason_to_lose_rows_of_others(root: Path) -> None:
    """Nobody knows what a damaged manifest of a generation names: its files stay."""
    photographs = [*photographs_of(("Bob", "Zoe"), "/photos")]
    faces = root / "other"
    write_album(faces, photographs, "/photos")
    (old,) = [path for path in faces.rglob("manifest.json") if "generations" in path.parts]
    with generation(faces) as made:
        made.publish([], {"label_conflicts": []})
    before = {path: path.read_bytes() for path in faces.rglob("*.parquet")}
    cut(old)
    line, _ = erase(EraseConfig(identity="Ann", root=[str(root)]))
    assert line.startswith(f"NOT CHECKED: {old}: ")
    assert {path: path.read_bytes() for path in faces.rglob("*.parquet")} == before


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    with s3_server(monkeypatch.setenv) as faults:
        yield faults


def test_unfinished_uploads_below_the_roots_are_aborted(bucket: Faults) -> None:
    root = f"{bucket.bucket}/work"
    photographs = [
        Photograph(f"{bucket.bucket}/photos/{name}/1.jpg", name, name) for name in ("Ann", "Bob", "Zoe")
    ]
    write_album(f"{root}/faces", photographs, "/photos")
    client, parts = s3.client(), {"Bucket": "faces", "PartNumber": 1, "Body": b"Ann"}
    for key in ("work/faces/parts/part-0.parquet", "work/report.html", "elsewhere/x"):
        upload = client.create_multipart_upload(Bucket="faces", Key=key)["UploadId"]
        client.upload_part(Key=key, UploadId=upload, **parts)
    assert erase(EraseConfig(identity="Ann", root=[root])) == []
    listed = client.list_multipart_uploads(Bucket="faces")["Uploads"]
    assert [upload["Key"] for upload in listed] == ["elsewhere/x"]
    rows = publish.open_dataset(f"{root}/faces", "").read("faces")
    assert set(rows["identity"].to_pylist()) == {"Bob", "Zoe"}


def test_uploads_that_cannot_be_listed_are_said(bucket: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"{bucket.bucket}/work"
    write_album(
        f"{root}/faces",
        [Photograph("/photos/Ann/1.jpg", "Ann", "a"), Photograph("/photos/Z/1.jpg", "Z", "z")],
        "/photos",
    )

    def refused(folder: str) -> list[tuple[str, str]]:
        raise s3.StorageError(f"{folder}: AccessDenied from S3")

    monkeypatch.setattr(s3, "unfinished_uploads", refused)
    line, _ = erase(EraseConfig(identity="Ann", root=[root]))
    assert line.startswith(
        f"NOT CHECKED: {root}: its unfinished uploads cannot be listed: {root}: AccessDenied"
    )
