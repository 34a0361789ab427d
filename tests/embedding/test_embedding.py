"""Embedding: every face once, in order, the vectors that the network itself gives; and what does not fit is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from facerec import schema, storage
from facerec.embedding.config import EmbedConfig
from facerec.embedding.pipeline import embed_faces, plan_faces
from facerec.errors import DatasetError, MismatchError
from facerec.models.embedder import ModelConfig, build
from facerec.models.format import load_model, save_model
from facerec.models.images import decode_jpeg, to_input
from tests.support.faces import write_faces
from tests.support.gauges import documented, gauges_of

MODEL = ModelConfig(side=64)


def config(tmp_path: Path, **changes: str) -> EmbedConfig:
    paths = {name: str(tmp_path / name) for name in ("faces", "model", "out")}
    return EmbedConfig(**{**paths, **changes}, batch_size=4, actors=1, backend="torch")  # type: ignore[arg-type]


@pytest.mark.usefixtures("ray_local")
def test_every_face_is_embedded_once_by_the_network_itself_and_a_rerun_makes_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = write_faces(tmp_path / "faces", identities=3, per_identity=3)
    save_model(str(tmp_path / "model"), build(MODEL, seed=0), MODEL, faces.preprocessing, {})
    gauges = gauges_of(monkeypatch, "embed")
    done = embed_faces(config(tmp_path))
    assert gauges == {f"ray_facerec_embed_{name}" for name in ("faces", "faces_left", "faces_per_s")}
    assert gauges < documented("embed")
    table, source = done.read("embeddings"), faces.read("faces")
    assert table.schema.equals(schema.EMBEDDINGS)
    assert table["face_id"].to_pylist() == source["face_id"].to_pylist()
    network, card = load_model(str(tmp_path / "model"))
    images = np.stack([decode_jpeg(image["bytes"]) for image in source["image"].to_pylist()])
    with torch.inference_mode():
        expected = network(to_input(images, 64)).numpy()
    vectors = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert set(table["model_id"].to_pylist()) == {card.model_id}

    part = next((tmp_path / "out" / "parts").iterdir())
    written = part.stat().st_mtime_ns
    (tmp_path / "out" / "manifest.json").unlink()  # as a kill before the last step leaves it
    assert embed_faces(config(tmp_path)).read("embeddings").equals(table)
    assert part.stat().st_mtime_ns == written
    part.unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    again = embed_faces(config(tmp_path))
    assert again.read("embeddings").equals(table)

    os.truncate(again.uris("embeddings")[0], 100)
    with pytest.raises(DatasetError, match=r"has 100 bytes, not \d+; remove it and run jobs/embed\.py again"):
        again.read("embeddings", ["face_id"])
    mended = embed_faces(config(tmp_path))
    assert (mended.generation, mended.digest) == (again.generation + 1, again.digest)
    assert embed_faces(config(tmp_path)).generation == mended.generation
    (part,) = (tmp_path / "out" / "parts").iterdir()
    os.truncate(part, 100)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(
        DatasetError, match=r"part-\w+\.parquet is damaged: .*remove it, and the same command"
    ):
        embed_faces(config(tmp_path))
    part.unlink()
    assert embed_faces(config(tmp_path)).read("embeddings").equals(table)


def test_a_dry_run_says_what_is_left_and_writes_nothing(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", identities=3, per_identity=3)
    save_model(str(tmp_path / "model"), build(MODEL, seed=0), MODEL, faces.preprocessing, {})
    said = plan_faces(config(tmp_path))
    assert said["to embed"] == "9 faces in parts of up to 512"
    assert not (tmp_path / "out").exists()


def test_faces_of_another_preprocessing_are_refused_before_any_work(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", identities=2, per_identity=2)
    save_model(
        str(tmp_path / "model"), build(MODEL, seed=0), MODEL, {**faces.preprocessing, "template": "other"}, {}
    )
    with pytest.raises(MismatchError, match=r"template is 'other' and 'arcface-112'"):
        embed_faces(config(tmp_path))
    assert not storage.exists(str(tmp_path / "out"))


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", identities=2, per_identity=2)
    with pytest.raises(DatasetError):
        embed_faces(config(tmp_path))


@pytest.mark.usefixtures("ray_local")
def test_a_new_generation_of_the_faces_costs_only_its_new_faces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_faces(tmp_path / "faces", identities=3, per_identity=3)
    save_model(str(tmp_path / "model"), build(MODEL, seed=0), MODEL, few.preprocessing, {})
    first = embed_faces(config(tmp_path))
    more = write_faces(tmp_path / "faces", identities=4, per_identity=3)
    second = embed_faces(config(tmp_path))
    assert "12 faces, 3 to embed" in capsys.readouterr().out
    assert (second.generation, second.manifest["faces_digest"]) == (2, more.digest)
    assert second.manifest["core_seconds"] > first.manifest["core_seconds"] > 0
    rows = second.read("embeddings")
    assert rows["face_id"].to_pylist() == more.read("faces")["face_id"].to_pylist()
    assert set(rows["faces_generation"].to_pylist()) == {2}
    assert rows.slice(0, 9)["embedding"].equals(first.read("embeddings")["embedding"])
