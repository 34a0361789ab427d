"""Whose a row is: by name in any spelling, by folder below the source's root, by bytes one step, and by nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pytest

from facerec import publish, storage
from facerec.cli import parse
from facerec.erasure.pipeline import EraseConfig, erase
from facerec.errors import ConfigError, StorageError
from facerec.photographs import resolved
from jobs.erase import flags
from tests.support.album import Photograph, photographs_of, write_album, write_vectors
from tests.support.generations import generation

JOB = Path(__file__).parents[2] / "jobs" / "erase.py"


def album(root: Path, photographs: list[Photograph], source: str = "/photos") -> None:
    """faces/ and embeddings/."""
    write_vectors(root / "embeddings", write_album(root / "faces", photographs, source))


def addresses(root: Path) -> set[str]:
    """Of everything that is left in faces, rejects, vectors and parts."""
    found: set[str] = set()
    for folder in ("faces", "embeddings"):
        dataset = publish.open_dataset(str(root / folder), "")
        uris = [uri for kind in ("faces", "rejects", "embeddings") for uri in dataset.uris(kind)]
        for uri in [*uris, *publish.parts(str(root / folder))]:
            found |= set(storage.read_table(uri, ["source_uri"])["source_uri"].to_pylist())
    return found


@pytest.mark.parametrize("asked", ["NFC", "NFD"])
@pytest.mark.parametrize("held", ["NFC", "NFD", " NFC "])
def test_a_name_is_found_in_every_spelling(tmp_path: Path, asked: str, held: str) -> None:
    name = held.replace(held.strip(), unicodedata.normalize(held.strip(), "José Müller"))  # type: ignore[arg-type]
    album(tmp_path, photographs_of((name, "Zoe"), "/photos"))
    config = EraseConfig(identity=unicodedata.normalize(asked, "José Müller"), root=[str(tmp_path)])  # type: ignore[arg-type]
    assert erase(config) == []
    assert {uri.split("/")[2] for uri in addresses(tmp_path)} == {"Zoe"}


@pytest.mark.parametrize("held, asked", [
    ("/photos/lists/../people/x.jpg", "/photos/people/x.jpg"),
    ("/people/./x.jpg", "/people/x.jpg"),
    ("/people/x.jpg", "/lists/../people/x.jpg"),
    (unicodedata.normalize("NFD", "/people/é.jpg"), "/people/é.jpg"),
])  # fmt: skip
def test_an_address_is_found_however_a_manifest_spelled_it(tmp_path: Path, held: str, asked: str) -> None:
    others = photographs_of(("Zoe",), "/photos")
    album(tmp_path, [Photograph(held, "Ann", "a"), *others])
    assert erase(EraseConfig(source=asked, root=[str(tmp_path)])) == []
    assert addresses(tmp_path) == {each.uri for each in others}


@pytest.mark.parametrize("uri, wanted", [
    ("s3://photos/lists/../Ann/./x.jpg", "s3://photos/Ann/x.jpg"),
    ("s3://photos/../x.jpg", "s3://photos/x.jpg"),
    ("s3://photos/a//x.jpg", "s3://photos/a//x.jpg"),
    ("/a//b/../x.jpg", "/a/x.jpg"),
    ("/../x.jpg", "/x.jpg"),
])  # fmt: skip
def test_an_address_is_resolved_as_its_storage_would(uri: str, wanted: str) -> None:
    assert resolved(uri) == wanted


def test_a_source_that_does_not_answer_is_said_and_the_erasure_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exists = storage.exists

    def refuses(uri: str) -> bool:
        if uri.startswith("/photos/"):
            raise StorageError(f"{uri}: AccessDenied")
        return exists(uri)

    album(tmp_path, photographs_of(("Ann", "Zoe"), "/photos"))
    monkeypatch.setattr(storage, "exists", refuses)
    assert erase(EraseConfig(identity="Ann", root=[str(tmp_path)])) == []
    assert (
        "source of the photographs cannot be looked at: /photos/Ann/0.jpg: AccessDenied"
        in capsys.readouterr().out
    )


def test_an_unnamed_row_is_the_persons_only_in_their_folder_below_the_sources_root(tmp_path: Path) -> None:
    source = "/home/anna/album"
    names = ("anna", "zoe", "zoe/anna", "ANNA", unicodedata.normalize("NFD", "añna"))
    photographs = [replace(each, identity=None) for each in photographs_of(names, source)]
    album(tmp_path, photographs, source)
    with pytest.raises(ConfigError, match="nothing below"):
        erase(EraseConfig(identity="home", root=[str(tmp_path)]))
    assert erase(EraseConfig(identity="anna", root=[str(tmp_path)])) == []
    wanted = {each.uri for each in photographs if not each.uri.startswith(f"{source}/anna/")}
    assert addresses(tmp_path) == wanted
    assert erase(EraseConfig(identity="añna", root=[str(tmp_path)])) == []
    assert {uri.split("/")[4] for uri in addresses(tmp_path)} == {"zoe", "ANNA"}


def test_unnamed_rows_of_an_unknown_source_are_listed_and_stay(tmp_path: Path) -> None:
    photographs = [replace(each, identity=None) for each in photographs_of(("zoe",), "/home/anna/album")]
    album(tmp_path, [*photographs, *photographs_of(("anna",), "/photos")], "/photos")
    shutil.rmtree(tmp_path / "faces")
    left = erase(EraseConfig(identity="anna", root=[str(tmp_path)]))
    part, published = sorted(left[:-1])
    assert all("7 rows without a name lie below a folder 'anna'" in line for line in left[:-1])
    assert (f"{tmp_path}/embeddings/generations" in part, f"{tmp_path}/embeddings/parts" in published) == (
        True,
        True,
    )
    rows = publish.open_dataset(str(tmp_path / "embeddings"), "").read("embeddings")
    assert set(rows["source_uri"].to_pylist()) == {each.uri for each in photographs if not each.reason}


def test_copies_are_followed_one_step(tmp_path: Path) -> None:
    """Zoe has a copy of a photograph of Ann's. At its address lay other photographs before and after, and a copy of one of
    those is in Bob's folder: all of these stay."""
    ann, zoe = photographs_of(("Ann",), "/photos"), photographs_of(("Zoe",), "/photos")
    copy = Photograph("/photos/Zoe/copy.jpg", "Zoe", ann[0].content)
    moved = Photograph("/photos/copies/copy.jpg", "Bob", ann[0].content)
    later = Photograph("/photos/Zoe/copy.jpg", "Zoe", "later")
    bobs = Photograph("/photos/Bob/later.jpg", "Bob", "later")
    album(tmp_path, [*ann, *zoe, copy, moved, later, bobs])
    assert erase(EraseConfig(identity="Ann", root=[str(tmp_path)])) == []
    faces = publish.open_dataset(str(tmp_path / "faces"), "").read("faces")
    vectors = publish.open_dataset(str(tmp_path / "embeddings"), "").read("embeddings")
    wanted = {each.face_id for each in [*zoe, later, bobs] if not each.reason}
    assert set(faces["face_id"].to_pylist()) == set(vectors["face_id"].to_pylist()) == wanted
    assert publish.open_dataset(str(tmp_path / "faces"), "").manifest["label_conflicts"] == [
        {"source_hash": later.source_hash, "identities": ["Bob", "Zoe"]}
    ]


def test_the_last_row_of_every_kind_of_folder_can_go(work: Path, tmp_path: Path) -> None:
    """Of names, the crash came before reports were masked."""
    table = publish.open_dataset(str(work / "names"), "").read("names")
    mine = table.filter(pc.equal(table["name"], "people"))
    assert mine.num_rows
    shutil.rmtree(work / "names")
    with generation(work / "names") as made:
        counts = {"faces": mine.num_rows, "named": mine.num_rows, "unknown": 0}
        made.publish([made.write("names-00000.parquet", "names", mine)], {"counts": counts})
    assert erase(EraseConfig(identity="people", root=[str(work)])) == []
    names = publish.open_dataset(str(work / "names"), "")
    assert names.read("names").num_rows == 0
    assert names.manifest["counts"] == {"faces": 0, "named": 0, "unknown": 0}
    assert "people" not in storage.read_json(f"{work}/report.json")["unseen_people"]

    album(tmp_path / "alone", photographs_of(("Ann",), "/photos"))
    assert erase(EraseConfig(identity="Ann", root=[str(tmp_path / "alone")])) == []
    for folder, kind in (("faces", "faces"), ("faces", "index"), ("embeddings", "embeddings")):
        assert publish.open_dataset(str(tmp_path / "alone" / folder), "").read(kind).num_rows == 0


def test_a_folder_of_another_version_is_listed_only_if_it_holds_them(tmp_path: Path) -> None:
    album(tmp_path / "ours", photographs_of(("Ann", "Zoe"), "/photos"))
    album(tmp_path / "old", photographs_of(("Bob", "Zoe"), "/photos"))
    for path in [*(tmp_path / "old").rglob("*.json")]:
        storage.write_json(str(path), storage.read_json(str(path)) | {"schema_version": 1})
    manifest = f"{tmp_path}/old/faces/manifest.json"
    said = {
        name: value
        for name, value in storage.read_json(manifest).items()
        if name not in ("history", "writer")
    }
    storage.write_json(manifest, said)
    assert erase(EraseConfig(identity="Ann", root=[str(tmp_path)])) == []
    left = erase(EraseConfig(identity="Bob", root=[str(tmp_path)]))
    assert left[0].startswith(
        f"STILL THERE: {tmp_path}/old/embeddings: 7 embeddings: another version of facerec wrote"
    )
    assert left[1].startswith(f"STILL THERE: {tmp_path}/old/faces: 7 faces, 1 rejects")
    assert not any(
        "Bob" in str(storage.read_table(uri).to_pylist()) for uri in publish.parts(f"{tmp_path}/old/faces")
    )
    assert storage.read_json(manifest) == said


@pytest.mark.parametrize(
    "name",
    [
        "null",
        "Null",
        "~",
        "true",
        "no",
        "1e3",
        "007",
        "0x1f",
        "[a]",
        "{}",
        "{a: 1}",
        "a: b",
        "- a",
        "2024-01-01",
    ],
)
@pytest.mark.parametrize("flag", ["identity", "source"])
def test_a_name_is_text_however_yaml_would_read_it(tmp_path: Path, name: str, flag: str) -> None:
    for argv in ([f"--{flag}={name}"], [f"--{flag}", name]):
        config = parse("erase", EraseConfig, flags([*argv, "--root", str(tmp_path)]))
        assert getattr(config, flag) == name
    preset = tmp_path / "preset.yaml"
    preset.write_text(f'erase: {{{flag}: "{name}", root: ["{tmp_path}"]}}\n')
    assert getattr(parse("erase", EraseConfig, ["--config", str(preset)]), flag) == name


@pytest.mark.parametrize("name", ["null", "~"])
def test_the_job_erases_somebody_called_null(tmp_path: Path, name: str) -> None:
    album(tmp_path, photographs_of((name, "Zoe"), "/photos"))
    command = [sys.executable, str(JOB), "--identity", name, "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hold nothing of them any more" in done.stdout
    assert {uri.split("/")[2] for uri in addresses(tmp_path)} == {"Zoe"}


def test_a_typing_error_leaves_with_2_and_offers_the_name(tmp_path: Path) -> None:
    album(tmp_path, photographs_of(("Angela Merkel", "Zoe"), "/photos"))
    command = [sys.executable, str(JOB), "--identity", "Angela Merkl", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "'Angela Merkel'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(addresses(tmp_path)) == 16


def test_other_peoples_files_do_not_keep_an_erasure_from_ending(tmp_path: Path) -> None:
    """Identity 7 never ended with 0, because everybody has a photograph 7.jpg."""
    album(tmp_path, photographs_of(("7", "Zoe"), "/photos", each=9))
    (tmp_path / "notes.txt").write_text("Zoe: 7.jpg\n")
    assert erase(EraseConfig(identity="7", root=[str(tmp_path)])) == []


def test_vectors_are_not_linked_to_faces_that_were_published_after_the_erasure(tmp_path: Path) -> None:
    """Erased below faces/ alone, then alignment publishes again, then the same command erases below both folders."""
    faces, vectors = tmp_path / "faces", tmp_path / "embeddings"
    first = write_album(faces, photographs_of(("Ann", "Bob", "Zoe"), "/photos"), "/photos")
    write_vectors(vectors, first)
    assert erase(EraseConfig(identity="Ann", root=[str(faces)])) == []
    erased = publish.open_dataset(str(faces), "").manifest
    kept = ("erased", "counts", "listing", "label_conflicts", "preprocessing")
    with generation(faces) as made:
        made.publish(erased["files"], {name: erased[name] for name in kept})
    assert erase(EraseConfig(identity="Ann", root=[str(tmp_path)])) == []
    assert publish.open_dataset(str(vectors), "").manifest["faces_digest"] == first.digest
