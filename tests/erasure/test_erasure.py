"""Erasure: nothing of the forgotten stays in any artifact, everything of the others does, and whatever stays is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.svm import SVC

from facerec import ledger, lock, publish, schema, storage
from facerec.alignment import compaction
from facerec.alignment.sources import Listing
from facerec.erasure.foreign import mentioning
from facerec.erasure.forgotten import Forgotten
from facerec.erasure.pipeline import EraseConfig, erase
from facerec.errors import BusyError, ConfigError, MismatchError
from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.gallery import Inputs, read_seen
from facerec.models.embedder import ModelConfig
from facerec.naming.pipeline import IdentifyConfig, identify
from facerec.photographs import as_table
from facerec.records import Shown
from facerec.schema import Preprocessing
from facerec.svm import save_svm
from facerec.training.batches import BatchConfig
from facerec.training.config import TrainConfig
from facerec.training.plan import make_plan, record
from tests.support.aligner import FakeAligner, listing, write_parts
from tests.support.faces import write_faces
from tests.support.generations import generation
from tests.support.pages import write_page

JOB = Path(__file__).parents[2] / "jobs" / "erase.py"
ANN, ANN_LEE = "person-000003", "person-000003 Lee"
"""The second is somebody else, whose name holds the first's."""
PEOPLE, EACH = 8, 40
pytestmark = pytest.mark.usefixtures("ray_local")


def photographs() -> Listing:
    """``PEOPLE`` people, one of them with the longer name; Zoe has a photograph of Ann's bytes, Ann a copy of her own."""
    table = listing(PEOPLE, EACH).photographs
    names = [ANN_LEE if name == "person-000005" else name for name in table["identity"].to_pylist()]
    uris = table["source_uri"].to_pylist()
    rows = list(zip(uris, names, strict=True))
    first = _faces_of(Listing(table, 0), ANN)[0].rsplit("/", 1)[-1]
    rows += [(f"/memory/Zoe/{first}", "Zoe"), (f"/memory/copies/{first}", ANN)]
    rows += [(f"/memory/Zoe/{at}.jpg", "Zoe") for at in range(10)]
    return Listing(as_table(*map(list, zip(*sorted(rows), strict=True))), 3)


def _faces_of(photographs: Listing, name: str) -> list[str]:
    rows = FakeAligner()(photographs.photographs).to_pylist()
    return [row["source_uri"] for row in rows if row["identity"] == name and not row["reason"]]


def make(root: Path) -> Listing:
    """Faces of two generations, vectors, names, a run, a report with its SVM, and a page."""
    everybody = photographs()
    fewer = Listing(everybody.photographs.slice(0, everybody.photographs.num_rows - 5), 3)
    write_parts(root / "faces", fewer.photographs, 50, FakeAligner())
    about = {"preprocessing": Preprocessing().to_json(), "config": {}}
    first = compacted(root / "faces", fewer, about)
    write_parts(root / "faces", everybody.photographs.slice(fewer.photographs.num_rows), 50, FakeAligner())
    faces = compacted(root / "faces", everybody, about)
    embed(root / "embeddings", faces)
    identify(IdentifyConfig(
        embeddings=f"{root}/embeddings", gallery=f"{root}/embeddings", out=f"{root}/names", false_alarms=0.1
    ))  # fmt: skip
    names = sorted({*everybody.photographs["identity"].to_pylist()})
    split = {"train": names[:5], "validation": [], "unseen": names[5:]}
    pinned = {"folder": faces.folder, "generation": 1, "digest": first.digest}
    storage.write_json(f"{root}/run/run.json", {"split": split, "faces": pinned})
    for network in ("model", "untrained"):
        (root / "run" / network).mkdir()
        (root / "run" / network / "model.safetensors").write_bytes(b"weights")
    svm = SVC().fit(np.eye(len(names)), names)
    storage.write_bytes(f"{root}/svm.skops", save_svm(svm))
    people = [{"identity": name, "taken_for": ANN} for name in names]
    sentence = f"3 people have one training photograph, {ANN} for one: no fold without it knows them"
    trained = {"per_identity": people, "svm": {"calibration": {"refused": sentence}}}
    said = {"format": 4, "versions": {}, "verification": {}, "identification": {"trained": trained}}
    storage.write_json(f"{root}/report.json", said)
    write_page(root / "report.html", Shown(frozenset([ANN])), ANN)
    write_page(root / "other.html", Shown(frozenset([ANN_LEE])), ANN_LEE)
    return everybody


def compacted(folder: Path, photographs: Listing, about: dict[str, Any]) -> publish.Dataset:
    with publish.exclusive(str(folder), "--out") as fence:
        return compaction.compact(fence, photographs, about, 0)


def embed(folder: Path, faces: publish.Dataset) -> None:
    """Vectors as jobs/embed.py publishes them, in two files, and its parts."""
    rows = faces.read("faces")
    person = np.unique(rows["identity"].to_pylist(), return_inverse=True)[1]
    noise = np.random.default_rng(0).normal(size=(rows.num_rows, schema.EMBEDDING_DIM))
    vectors = np.eye(schema.EMBEDDING_DIM)[person] + 0.02 * noise
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    kept = {name: rows[name] for name in schema.EMBEDDINGS.names if name in rows.column_names}
    added = {"model_id": "m", "preprocessing_id": "p", "faces_generation": faces.generation}
    columns = {name: [value] * rows.num_rows for name, value in added.items()}
    table = pa.table({**kept, "embedding": list(unit), **columns})
    table = table.select(schema.EMBEDDINGS.names).cast(schema.EMBEDDINGS)
    about = {"faces_digest": faces.digest, "faces_generation": faces.generation}
    counts, files = {"faces": table.num_rows}, []
    with publish.exclusive(str(folder), "--out") as fence:
        publish.claim(fence, {"faces": faces.folder}, "--out")
        made = publish.begin(fence)
        for at in range(2):
            some = table.slice(at * 150, 150 if at == 0 else None)
            storage.write_table(f"{folder}/parts/part-{at:024x}.parquet", some)
            files.append(made.write(f"embeddings-{at:05d}.parquet", "embeddings", some))
        made.publish(files, about | {"model_id": "m", "counts": counts})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Listing]:
    root = tmp_path_factory.mktemp("artifacts")
    return root, make(root)


@pytest.fixture
def root(made: tuple[Path, Listing], tmp_path: Path) -> Path:
    """A copy to erase from."""
    shutil.copytree(made[0], tmp_path / "work")
    return tmp_path / "work"


def rows(folder: Path | str, kind: str) -> list[dict[str, Any]]:
    return publish.open_dataset(str(folder), "").read(kind).to_pylist()


def words(root: Path) -> str:
    """Every value of every Parquet and text file below the root, by other means than erasure's."""
    said = []
    for path in sorted(root.rglob("*")):
        if path.suffix == ".parquet":
            said.append(str(pq.read_table(path).to_pydict()))
        elif path.is_file() and path.name != ".lock":
            said.append(path.read_text(errors="replace"))
    return "\n".join(said).replace(ANN_LEE, "")


def consistent(folder: Path) -> None:
    """Index, counts and files describe the faces that are there."""
    faces = publish.open_dataset(str(folder), "")
    total = 0
    for span in faces.read("index").to_pylist():
        group = pq.ParquetFile(faces.uri(span["file"])).read_row_group(span["row_group"], ["identity"])
        held = group["identity"].to_pylist()[span["first_row"] : span["first_row"] + span["rows"]]
        assert held == [span["identity"]] * span["rows"]
        total += span["rows"]
    counts = faces.manifest["counts"]
    assert total == counts["faces"] == len(rows(folder, "faces"))
    assert counts["photographs"] == counts["photographs_with_faces"] + sum(counts["image_rejects"].values())
    assert counts["identities"] == len({row["identity"] for row in rows(folder, "faces")})
    for entry in faces.manifest["files"]:
        assert pq.read_metadata(folder / entry["path"]).num_rows == entry["rows"]


def test_a_person_is_nowhere_and_everybody_else_is_as_before(
    root: Path, made: tuple[Path, Listing], capsys: pytest.CaptureFixture[str]
) -> None:
    ours = {row["face_id"] for row in rows(root / "faces", "faces") if row["identity"] == ANN}
    copied = FakeAligner()(made[1].photographs).to_pylist()
    hashes = {row["source_hash"] for row in copied if row["identity"] == ANN}
    gone = {row["source_uri"] for row in copied if row["source_hash"] in hashes}
    assert any("Zoe" in uri for uri in gone)
    before = {kind: rows(root / "faces", kind) for kind in ("faces", "rejects")}
    assert erase(EraseConfig(identity=ANN, root=[str(root)])) == []

    said = words(root)
    assert ANN not in said
    assert not any(token in said for token in ours | gone)
    assert not (root / "svm.skops").exists()
    assert not (root / "report.html").exists()
    assert (root / "other.html").exists()
    for kind, wanted in before.items():
        key = "face_id" if kind == "faces" else "source_uri"
        left = [row for row in wanted if row["source_uri"] not in gone]
        assert sorted(rows(root / "faces", kind), key=lambda row: str(row[key])) == sorted(
            left, key=lambda row: str(row[key])
        )
    consistent(root / "faces")
    faces = publish.open_dataset(str(root / "faces"), "")
    assert faces.manifest["label_conflicts"] == []
    assert [entry["generation"] for entry in faces.manifest["erased"]] == [1, 2]
    vectors = publish.open_dataset(str(root / "embeddings"), "")
    assert len(rows(root / "embeddings", "embeddings")) == len(rows(root / "faces", "faces"))
    assert vectors.manifest["faces_digest"] == faces.digest
    report = storage.read_json(f"{root}/report.json")
    trained = report["identification"]["trained"]
    assert {row["taken_for"] for row in trained["per_identity"]} == {"(erased)"}
    assert "photograph, (erased) for one" in trained["svm"]["calibration"]["refused"]
    said = capsys.readouterr().out
    assert f"{root}/run/model was trained on faces that held them" in said
    assert "untrained" not in said


def test_untouched_shards_stay_where_they_are(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (root / "embeddings").rglob("*.parquet")}
    (uri, *_) = [row["source_uri"] for row in rows(root / "embeddings", "embeddings")]
    assert erase(EraseConfig(source=uri, root=[str(root)])) == []
    after = {path: path.stat().st_mtime_ns for path in (root / "embeddings").rglob("*.parquet")}
    untouched = {path.name for path in before.items() & after.items() for path in path[:1]}
    assert untouched == {"embeddings-00001.parquet", f"part-{1:024x}.parquet"}
    now = publish.open_dataset(str(root / "embeddings"), "").files("embeddings")
    assert [(path[:17], path.rsplit("/", 1)[-1]) for path in now] == [
        ("generations/0002-", "embeddings-00000.parquet"),
        ("generations/0001-", "embeddings-00001.parquet"),
    ]


def test_the_same_alignment_after_it_is_finished_without_them_and_brings_them_back_where_they_are_listed(
    root: Path, made: tuple[Path, Listing]
) -> None:
    gone = rows(root / "faces", "faces")[0]["identity"]
    assert erase(EraseConfig(identity=gone, root=[str(root)])) == []
    table = made[1].photographs
    manifest = publish.open_dataset(str(root / "faces"), "").manifest
    there = {
        (row["source_uri"], row["identity"])
        for kind in ("faces", "rejects")
        for row in rows(root / "faces", kind)
    }
    keep = [(row["source_uri"], row["identity"]) in there for row in table.to_pylist()]
    left = Listing(table.filter(pa.array(keep)), 3)
    assert not ledger.missing(publish.parts(str(root / "faces")), left.photographs).num_rows
    assert ledger.is_current(str(root / "faces"), left.photographs)
    again = compacted(root / "faces", left, {})
    assert again.generation == manifest["generation"] + 1
    assert again.manifest["counts"] == manifest["counts"]
    assert again.manifest["erased"] == manifest["erased"]
    assert (
        ledger.missing(publish.parts(str(root / "faces")), table).num_rows
        == table.num_rows - left.photographs.num_rows
    )


def test_a_photograph_is_its_bytes_wherever_they_are_listed(root: Path) -> None:
    conflict = publish.open_dataset(str(root / "faces"), "").manifest["label_conflicts"][0]
    assert conflict["identities"] == sorted([ANN, "Zoe"])
    wanted = len(rows(root / "faces", "faces"))
    copied = FakeAligner()(photographs().photographs).to_pylist()
    uri = next(row["source_uri"] for row in copied if row["source_hash"] == conflict["source_hash"])
    assert erase(EraseConfig(source=uri, root=[str(root)])) == []
    assert len(rows(root / "faces", "faces")) == wanted - 2  # Ann's and Zoe's; a copy of Ann's was a reject
    assert not publish.open_dataset(str(root / "faces"), "").manifest["label_conflicts"]
    assert ANN in {row["identity"] for row in rows(root / "faces", "faces")}
    assert "/memory/copies/" not in words(root)
    consistent(root / "faces")


def test_a_name_that_others_were_given_goes_and_their_faces_stay(root: Path) -> None:
    names = publish.open_dataset(str(root / "names"), "")
    table = names.read("names")
    at = next(at for at, row in enumerate(table.to_pylist()) if "person-000001/" in row["source_uri"])
    given = table["name"].to_pylist()
    given[at] = ANN
    table = table.set_column(3, schema.NAMES.field("name"), pa.array(given, pa.string()))
    with generation(names.folder) as made:
        made.publish([made.write("names-00000.parquet", "names", table)], names.manifest)
    erase(EraseConfig(identity=ANN, root=[str(root)]))
    left = {row["face_id"]: row for row in rows(root / "names", "names")}
    assert left[table["face_id"][at].as_py()]["name"] is None
    counts = publish.open_dataset(str(root / "names"), "").manifest["counts"]
    assert counts["faces"] == len(left) == counts["named"] + counts["unknown"]


@pytest.mark.parametrize(
    "plant",
    [
        lambda root: (root / "notes.txt").write_text(f"ask {ANN}, please"),
        lambda root: (root / "list.json").write_text(json.dumps({"who": [{ANN: 1}]})),
        lambda root: storage.write_table(f"{root}/copy.parquet", pa.table({"x": [["a", ANN]]})),
        lambda root: (root / "old.bin").write_bytes(b"\0\xff" + ANN.encode() + b"\0"),
        lambda root: storage.write_table(
            f"{root}/deep.parquet", pa.table({"image": [{"bytes": b"1", "path": f"/x/{ANN}/1.jpg"}]})
        ),
    ],
)
def test_a_leftover_of_any_kind_is_caught(tmp_path: Path, plant: Any) -> None:
    what = Forgotten(ANN, longer=frozenset([ANN_LEE]))
    (tmp_path / "other.txt").write_text(f"{ANN_LEE} and {ANN}x")
    assert mentioning(storage.list_tree(str(tmp_path)), what, {}) == []
    plant(tmp_path)
    assert len(mentioning(storage.list_tree(str(tmp_path)), what, {})) == 1


def test_uris_and_face_ids_that_are_left_are_caught(tmp_path: Path) -> None:
    what = Forgotten("", uris=frozenset(["/p/1.jpg"]), face_ids=frozenset(["0f" * 16]))
    (tmp_path / "others.txt").write_text(f"/mnt/p/1.jpg /p/1.jpgs {'0e' * 16}")
    assert mentioning(storage.list_tree(str(tmp_path)), what, {}) == []
    (tmp_path / "uri.csv").write_text("uri\n/p/1.jpg\n")
    (tmp_path / "id.json").write_text(json.dumps(["0f" * 16]))
    assert len(mentioning(storage.list_tree(str(tmp_path)), what, {})) == 2


def test_the_job_leaves_with_1_where_something_is_left_and_a_dry_run_changes_nothing(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    command = [
        sys.executable,
        str(JOB),
        "--identity",
        ANN,
        "--root",
        str(root / "faces"),
        "--root",
        str(root),
    ]
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True, timeout=120)
    assert "would go" in dry.stdout
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    (root / "people.csv").write_text(f"uri,identity\n1.jpg,{ANN}\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert f"MENTIONED in {root}/people.csv, which facerec did not write" in done.stdout


def test_a_folder_in_use_is_left_as_it_is(root: Path) -> None:
    before = words(root)
    with lock.exclusive(str(root / "embeddings"), "--out"), pytest.raises(BusyError):
        erase(EraseConfig(identity=ANN, root=[str(root)]))
    assert words(root) == before


def test_a_run_whose_faces_were_purged_is_one_line(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", 8, 4)
    config = TrainConfig(
        faces=f"{tmp_path}/faces",
        run=f"{tmp_path}/run",
        model=ModelConfig(side=32),
        batch=BatchConfig(p=2, k=2, micro_batch=4),
        num_workers=0,
    )
    record(make_plan(config))
    assert erase(EraseConfig(identity="person-003", root=[str(tmp_path)])) == []
    with pytest.raises(MismatchError, match=r"generation 1 of .*generation 2 is there.*--run"):
        make_plan(config)


def test_an_evaluation_still_knows_whom_the_network_has_seen(root: Path) -> None:
    assert erase(EraseConfig(identity=ANN, root=[str(root)])) == []
    config = EvaluateConfig(run=f"{root}/run", embeddings=f"{root}/embeddings")
    run, vectors = (
        storage.read_json(f"{root}/run/run.json"),
        publish.open_dataset(f"{root}/embeddings", ""),
    )
    run["faces"]["folder"] = f"{root}/faces"
    seen = read_seen(config, Inputs(vectors, None, None, run))
    assert seen is not None
    there = {row["identity"] for row in rows(root / "faces", "faces")}
    assert set(seen.identities.tolist()) == set(run["split"]["train"]) & there


def test_somebody_who_is_nowhere_is_refused_and_the_nearest_names_are_offered(root: Path) -> None:
    before = words(root)
    with pytest.raises(ConfigError, match=rf"nothing below .* is of 'person-000033'.*'{ANN}'.*--identity"):
        erase(EraseConfig(identity="person-000033", root=[str(root)]))
    first, number = _faces_of(photographs(), ANN)[0].rsplit("/", 1)
    with pytest.raises(
        ConfigError, match=rf"is of '/memory/elsewhere/{number}'.*'{first}/{number}'.*--source"
    ):
        erase(EraseConfig(source=f"/memory/elsewhere/{number}", root=[str(root)]))
    assert words(root) == before


@pytest.mark.parametrize(
    "flags", [{}, {"identity": "a", "source": "b"}, {"identity": "a"}, {"identity": "a", "root": [__file__]}]
)
def test_a_senseless_flag_is_one_line(flags: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"--identity|--root"):
        EraseConfig(**flags)
