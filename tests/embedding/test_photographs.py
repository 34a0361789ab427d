"""Photographs to vectors without faces on disk: the vectors of the way over shards, and every photograph accounted for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from facerec import publish, schema
from facerec.alignment.aligner import Aligner, aligned_faces
from facerec.alignment.config import EVERY_FACE, AlignConfig
from facerec.alignment.pipeline import align_source, listed
from facerec.embedding.config import EmbedConfig
from facerec.embedding.photographs import Photographs, _one_that_is_there, embed_photographs
from facerec.embedding.pipeline import embed_faces
from facerec.errors import MismatchError
from facerec.models.embedder import ModelConfig, build
from facerec.models.format import save_model
from facerec.models.inference import load_embedder
from facerec.schema import Preprocessing
from facerec.synthetic import SyntheticConfig, render, write_collection
from tests.support.gauges import documented, gauges_of
from tests.support.processes import kill_once

MODEL = ModelConfig(side=64)
JOB = Path(__file__).parents[2] / "jobs" / "embed.py"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight drawn photographs, a copy of one, and one that is no image; beside them a model."""
    write_collection(tmp_path / "drawn", SyntheticConfig(identities=2, photographs=4))
    first = next((tmp_path / "drawn").rglob("*.jpg"))
    shutil.copy(first, first.with_name("zz-copy.jpg"))
    (tmp_path / "drawn" / "damaged.jpg").write_bytes(b"no image")
    save_model(str(tmp_path / "model"), build(MODEL, seed=0), MODEL, Preprocessing().to_json(), {})
    return tmp_path / "drawn"


def brought(source: Path) -> Photographs:
    align = AlignConfig(source=str(source), faces="all", detection=EVERY_FACE)
    return Photographs(
        listed=listed(align).photographs,
        ignored=0,
        make_align=partial(Aligner, align),
        preprocessing=align.preprocessing.to_json(),
        deciding=align.deciding(),
        part=3,
    )


def config(tmp_path: Path, out: str = "out") -> EmbedConfig:
    return EmbedConfig(
        model=str(tmp_path / "model"),
        out=str(tmp_path / out),
        backend="torch",
        precision="fp32",
        batch_size=4,
    )


def vectors(rows: pa.Table) -> NDArray[np.float32]:
    return np.stack(rows.sort_by("face_id")["embedding"].to_numpy(zero_copy_only=False))


def test_the_nodes_are_asked_about_a_photograph_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"")
    listed = pa.table({"source_uri": [f"{tmp_path}/{name}.jpg" for name in "abc"]})
    assert _one_that_is_there(listed) == [f"{tmp_path}/b.jpg"]
    assert _one_that_is_there(listed.slice(2)) == []


@pytest.mark.usefixtures("ray_local")
def test_photographs_give_the_vectors_that_their_faces_on_disk_give(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauges = gauges_of(monkeypatch, "embed")
    straight = embed_photographs(brought(source), config(tmp_path))
    of_faces = {f"ray_facerec_embed_{name}" for name in ("faces_left", "faces_per_s")}
    assert gauges == documented("embed") - of_faces
    rows = straight.read("embeddings")
    assert rows.schema.equals(schema.EMBEDDINGS)
    faces = align_source(
        AlignConfig(source=str(source), out=str(tmp_path / "faces"), faces="all", detection=EVERY_FACE)
    )
    other = embed_faces(replace(config(tmp_path, "by-faces"), faces=str(tmp_path / "faces"), batch_size=64))
    stored = other.read("embeddings")
    for name in ("face_id", "source_uri", "phash", "model_id", "preprocessing_id"):
        assert rows.sort_by("face_id")[name].equals(stored.sort_by("face_id")[name]), name
    np.testing.assert_allclose(vectors(rows), vectors(stored), atol=1e-5)
    same = {
        name: count for name, count in faces.manifest["counts"].items() if name != "near_duplicate_groups"
    }
    assert straight.manifest["counts"] == same
    assert straight.read("rejects").sort_by("source_uri").equals(faces.read("rejects").sort_by("source_uri"))
    assert sorted(straight.read("rejects")["reason"].to_pylist()) == ["duplicate", "unreadable"]
    assert straight.manifest["core_seconds"] > 0

    photograph = rows["source_uri"][0].as_py()
    mine = rows.filter(pa.compute.equal(rows["source_uri"], photograph))
    by_hand = load_embedder(str(tmp_path / "model"), backend="torch", precision="fp32")(
        aligned_faces(photograph)
    )
    np.testing.assert_allclose(np.stack(mine["embedding"].to_numpy(zero_copy_only=False)), by_hand, atol=1e-5)


@pytest.mark.usefixtures("ray_local")
def test_photographs_added_later_are_the_only_ones_embedded_and_are_a_new_generation(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (held_back,) = source.rglob("zz-copy.jpg")
    held_back = held_back.rename(tmp_path / "later.jpg")
    first = embed_photographs(brought(source), config(tmp_path))
    written = {uri: Path(uri).stat().st_mtime_ns for uri in publish.parts(first.folder)}
    held_back.rename(source / "later.jpg")
    capsys.readouterr()
    second = embed_photographs(brought(source), config(tmp_path))
    assert "10 photographs listed (0 other files ignored), 1 to embed" in capsys.readouterr().out
    assert (first.generation, second.generation) == (1, 2)
    assert (
        written.items() <= {uri: Path(uri).stat().st_mtime_ns for uri in publish.parts(first.folder)}.items()
    )
    assert second.manifest["core_seconds"] > first.manifest["core_seconds"]
    embed_photographs(brought(source), config(tmp_path))
    assert "finished already" in capsys.readouterr().out


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("through", ["photos", "faces"])
def test_a_replaced_photograph_gets_a_new_vector_and_a_deleted_one_has_none(
    tmp_path: Path, source: Path, through: str
) -> None:
    """Both ways, against a fresh run over the changed photographs."""

    def embedded(out: str) -> pa.Table:
        if through == "photos":
            return embed_photographs(brought(source), config(tmp_path, out)).read("embeddings")
        faces = f"{tmp_path}/{out}-faces"
        align_source(AlignConfig(source=str(source), out=faces, faces="all", detection=EVERY_FACE))
        return embed_faces(replace(config(tmp_path, out), faces=faces)).read("embeddings")

    *_, first, second, third = sorted(source.glob("*/*.jpg"))[:5]
    before = embedded("out")
    Image.fromarray(render(99, 0)).save(first)
    second.unlink()
    os.utime(third, (1, 1))
    after, fresh = embedded("out"), embedded("fresh")
    assert str(second) in before["source_uri"].to_pylist()
    assert str(second) not in after["source_uri"].to_pylist()
    columns = ["face_id", "source_uri", "source_version"]
    order = [(name, "ascending") for name in columns]
    assert after.select(columns).sort_by(order).equals(fresh.select(columns).sort_by(order))
    np.testing.assert_allclose(vectors(after), vectors(fresh), atol=1e-5)
    held = {row["source_uri"]: row["embedding"] for row in before.to_pylist()}
    now = {row["source_uri"]: row["embedding"] for row in after.to_pylist()}
    assert np.dot(held[str(first)], now[str(first)]) < 0.999


@pytest.mark.usefixtures("ray_local")
def test_a_photograph_that_was_away_is_embedded_once_it_is_back(tmp_path: Path, source: Path) -> None:
    (copy,) = source.rglob("zz-copy.jpg")
    copy.unlink()
    Image.fromarray(render(99, 0)).save(tmp_path / "mounted.jpg")
    copy.symlink_to(tmp_path / "mounted.jpg")
    (tmp_path / "mounted.jpg").rename(tmp_path / "away.jpg")
    first = embed_photographs(brought(source), config(tmp_path))
    assert first.manifest["counts"]["image_rejects"] == {"unavailable": 1, "unreadable": 1}
    assert embed_photographs(brought(source), config(tmp_path)).generation == 1
    (tmp_path / "away.jpg").rename(tmp_path / "mounted.jpg")
    second = embed_photographs(brought(source), config(tmp_path))
    assert second.manifest["counts"]["image_rejects"] == {"unreadable": 1}
    assert str(copy) in second.read("embeddings")["source_uri"].to_pylist()


@pytest.mark.usefixtures("ray_local")
def test_another_models_vectors_do_not_get_into_the_same_folder(tmp_path: Path, source: Path) -> None:
    embed_photographs(brought(source), config(tmp_path))
    save_model(str(tmp_path / "model"), build(MODEL, seed=1), MODEL, Preprocessing().to_json(), {})
    before = sorted((tmp_path / "out").rglob("*"))
    with pytest.raises(MismatchError, match=r"model_id is .* there and .* here; choose another --out"):
        embed_photographs(brought(source), config(tmp_path))
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_a_model_of_another_contract_is_refused_before_anything_is_written(
    tmp_path: Path, source: Path
) -> None:
    other = Preprocessing(template="other").to_json()
    save_model(str(tmp_path / "model"), build(MODEL, seed=0), MODEL, other, {})
    with pytest.raises(MismatchError, match="template is 'other' and 'arcface-112'"):
        embed_photographs(brought(source), config(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, words", [([], "holds no photographs"), (["--faces", "some"], "give --photos or --faces")]
)
def test_no_photographs_are_one_line_and_nothing_is_written(
    tmp_path: Path, flags: list[str], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    command = [
        sys.executable,
        str(JOB),
        "--photos",
        str(tmp_path / "empty"),
        "--out",
        str(tmp_path / "out"),
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()


def test_the_faces_of_group_photographs_are_all_found(photographs_of_people: Path) -> None:
    """The character after the last underscore: how many there are, or a letter for one person."""
    for path in sorted((photographs_of_people / "odd" / "compreface_samples").iterdir()):
        there = path.stem.rsplit("_", 1)[1]
        assert len(aligned_faces(str(path))) == (int(there) if there.isdigit() else 1), path.name


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_a_killed_job_ends_by_the_same_command_with_the_rows_of_an_undisturbed_one(
    tmp_path: Path, source: Path
) -> None:
    parts = tmp_path / "killed" / "parts"
    command = [sys.executable, str(JOB), "--photos", str(source), "--model", str(tmp_path / "model")]
    command += ["--part", "1", "--precision", "fp32", "--backend", "torch", "--out", str(tmp_path / "killed")]
    kill_once(command, lambda: len(list(parts.glob("*.parquet"))) >= 2)
    assert not (tmp_path / "killed" / "manifest.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    disturbed = publish.open_dataset(str(tmp_path / "killed"), "jobs/embed.py")
    undisturbed = embed_photographs(brought(source), config(tmp_path))
    assert disturbed.manifest["counts"] == undisturbed.manifest["counts"]
    np.testing.assert_allclose(
        vectors(disturbed.read("embeddings")), vectors(undisturbed.read("embeddings")), atol=1e-5
    )
