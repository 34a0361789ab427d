"""Compaction: every face once, laid out for training, the same whatever the parts and however often it was killed."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facerec import ledger, publish, schema, storage
from facerec.alignment import compaction
from facerec.alignment.sources import Listing
from facerec.errors import DatasetError
from facerec.photographs import as_table
from facerec.session import ray_session
from tests.support.aligner import FakeAligner, listing, write_parts

pytestmark = pytest.mark.usefixtures("ray_local")


def compacted(folder: Path, photographs: Listing, *, part: int = 200, seed: int = 0) -> publish.Dataset:
    """Parts, then a generation."""
    write_parts(folder, photographs.photographs, part, FakeAligner())
    return compact(folder, photographs, seed)


def compact(folder: Path, photographs: Listing, seed: int = 0) -> publish.Dataset:
    with publish.exclusive(str(folder), "--out") as fence:
        return compaction.compact(fence, photographs, {}, seed)


@pytest.fixture(scope="module")
def photographs() -> Listing:
    """5,600 photographs: more than a shard."""
    return listing(140, 40)


@pytest.fixture(scope="module")
def dataset(photographs: Listing, tmp_path_factory: pytest.TempPathFactory) -> publish.Dataset:
    return compacted(tmp_path_factory.mktemp("faces"), photographs)


def test_every_face_is_there_once_with_its_own_image(dataset: publish.Dataset, photographs: Listing) -> None:
    wanted = [row for row in FakeAligner()(photographs.photographs).to_pylist() if not row["reason"]]
    found = {row["face_id"]: row for row in dataset.read("faces").to_pylist()}
    assert len(found) == len(wanted) == dataset.manifest["counts"]["faces"]
    for row in wanted:
        assert found[row["face_id"]] == {name: row[name] for name in schema.FACES.names}
    assert len(dataset.files("faces")) == 2


def test_the_index_tells_whose_each_row_is(dataset: publish.Dataset) -> None:
    rows = 0
    for span in dataset.read("index").to_pylist():
        file = pq.ParquetFile(dataset.uri(span["file"]))
        group = file.read_row_group(span["row_group"], ["identity"])["identity"]
        assert set(group.slice(span["first_row"], span["rows"]).to_pylist()) == {span["identity"]}
        rows += span["rows"]
    assert rows == dataset.manifest["counts"]["faces"]


def test_chunks_hold_16_and_row_groups_end_with_the_chunk_that_fills_them(dataset: publish.Dataset) -> None:
    index = dataset.read("index").to_pandas()
    sizes = index.groupby(["file", "row_group"], sort=False)["rows"].agg(["sum", list])
    assert all(sum(chunks[:-1]) < compaction.ROW_GROUP for chunks in sizes["list"])
    assert (sizes["sum"][:-1] >= compaction.ROW_GROUP).all()
    assert index["rows"].between(compaction.CHUNK, 2 * compaction.CHUNK - 1).all()


def test_files_are_as_the_manifest_describes_them(dataset: publish.Dataset) -> None:
    for file in dataset.manifest["files"]:
        data = storage.read_bytes(storage.join(dataset.folder, file["path"]))
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
        assert pq.read_metadata(pa.BufferReader(data)).num_rows == file["rows"]


def test_the_generation_does_not_depend_on_the_parts(
    dataset: publish.Dataset, photographs: Listing, tmp_path: Path
) -> None:
    assert compacted(tmp_path, photographs, part=333).digest == dataset.digest


def test_another_seed_is_another_order_of_the_same_faces(
    dataset: publish.Dataset, photographs: Listing, tmp_path: Path
) -> None:
    ours, other = (
        one.read("faces")["face_id"].to_pylist()
        for one in (dataset, compacted(tmp_path, photographs, seed=1))
    )
    assert ours != other
    assert sorted(ours) == sorted(other)


def test_copies_are_rejects_and_bytes_of_two_people_are_conflicts(tmp_path: Path) -> None:
    """Files of one name hold the same bytes."""
    names = [
        row["source_uri"] for row in FakeAligner()(listing(3, 9).photographs).to_pylist() if not row["reason"]
    ]
    rows = [(uri, uri.split("/")[2]) for uri in names]
    rows += [
        (names[0].replace("/memory/", "/memory/a/"), rows[0][1]),
        (names[1].replace("/memory/", "/memory/z/"), "Zoe"),
    ]
    table = as_table(*map(list, zip(*sorted(rows), strict=True)))
    dataset = compacted(tmp_path, Listing(table, 0), part=4)
    (reject,) = dataset.read("rejects").to_pylist()
    assert reject["source_uri"] == names[0]
    assert (reject["reason"], reject["detail"]) == ("duplicate", f"same bytes as {rows[-2][0]}")
    (conflict,) = dataset.manifest["label_conflicts"]
    assert conflict["identities"] == ["Zoe", rows[1][1]]
    twins = dataset.read("near_duplicates")
    faces = dataset.read("faces", ["face_id", "phash"]).to_pandas()
    hashes = faces.set_index("face_id").loc[twins["face_id"].to_pylist(), "phash"]
    assert twins["group"].to_pylist() == [0, 0]
    assert hashes.nunique() == 1
    assert dataset.manifest["counts"]["near_duplicate_groups"] == 1


def test_a_photograph_in_two_parts_counts_once(
    tmp_path: Path, photographs: Listing, dataset: publish.Dataset
) -> None:
    write_parts(tmp_path, photographs.photographs.slice(100, 300), 150, FakeAligner())
    assert compacted(tmp_path, photographs).digest == dataset.digest


def test_what_is_missing_is_told_by_uri_and_identity(tmp_path: Path) -> None:
    """The same file under two names, and under none, is three photographs."""
    uris, names = ["m://1.jpg"] * 3 + ["m://2.jpg"], ["Ada", "Bo", None, "Ada"]
    photographs = as_table(uris, names)
    assert ledger.missing(publish.parts(str(tmp_path)), photographs).equals(photographs)
    write_parts(tmp_path, photographs.take([0, 2]), 1, FakeAligner())
    assert ledger.missing(publish.parts(str(tmp_path)), photographs)["identity"].to_pylist() == ["Bo", "Ada"]


def test_a_part_that_is_gone_is_an_error_and_a_photograph_that_is_gone_is_left_out(tmp_path: Path) -> None:
    photographs = listing(4, 20)
    write_parts(tmp_path, photographs.photographs, 20, FakeAligner())
    fewer = Listing(photographs.photographs.slice(20), 0)
    assert compact(tmp_path, fewer).manifest["counts"]["photographs"] == 60
    assert ledger.is_current(str(tmp_path), fewer.photographs)
    assert not ledger.is_current(str(tmp_path), photographs.photographs)
    next((tmp_path / "parts").iterdir()).unlink()
    with pytest.raises(DatasetError, match="80 photographs in"):
        compact(tmp_path, photographs)


def test_a_run_killed_while_it_compacts_leaves_nothing_that_the_next_one_does_not_mend(
    tmp_path: Path, photographs: Listing, dataset: publish.Dataset
) -> None:
    """SIGKILL as soon as the first shard is there, while fewer photographs were listed; then all."""
    write_parts(tmp_path, photographs.photographs, 200, FakeAligner())
    fewer = Listing(photographs.photographs.slice(40), 0)
    spawn = multiprocessing.get_context("spawn")
    run = spawn.Process(target=compact_alone, args=(str(tmp_path), fewer))
    run.start()
    while not (shards := list(tmp_path.glob("generations/0001-*/*.parquet"))):
        assert run.is_alive()
        time.sleep(0.005)
    run.kill()
    run.join()
    assert not (tmp_path / "manifest.json").exists()
    shards[0].with_name("faces-00009.parquet").touch()
    mended = compact(tmp_path, photographs)
    assert (mended.generation, mended.digest) == (1, dataset.digest)
    named = {Path(file["path"]).name for file in mended.manifest["files"]}
    left = [path for path in (tmp_path / "generations").rglob("*") if path.is_file()]
    assert sorted(path.name for path in left) == sorted([*named, "manifest.json"])


def compact_alone(folder: str, photographs: Listing) -> None:
    """Compact in a process of its own with a Ray of its own."""
    with ray_session(1):
        compact(Path(folder), photographs)
