"""Published folders are read by tools that know nothing of this code: DuckDB and Hugging Face datasets."""

from __future__ import annotations

import io
import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from facerec import publish, schema, storage
from tests.support.faces import write_faces

PEOPLE, EACH = 5, 7


def pixels(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def dataset(tmp_path: Path) -> publish.Dataset:
    """The second of two generations: what a reader must not mix up."""
    write_faces(tmp_path / "faces", PEOPLE - 1, EACH, side=64)
    return write_faces(tmp_path / "faces", PEOPLE, EACH, side=64)


def test_duckdb_reads_the_faces_that_the_manifest_names(dataset: publish.Dataset) -> None:
    with duckdb.connect() as connection:
        connection.execute(
            f"""SET VARIABLE faces = (SELECT list('{dataset.folder}/' || file.path) FROM
            (SELECT unnest(files) AS file FROM '{dataset.folder}/manifest.json') WHERE file.kind = 'faces')"""
        )
        source = "read_parquet(getvariable('faces'))"
        people = connection.sql(f"SELECT identity, count(*) FROM {source} GROUP BY 1 ORDER BY 1").fetchall()
        rows = connection.sql(f"SELECT face_id, image.bytes, len(landmarks) FROM {source}").fetchall()
    assert people == [(f"person-{person:03d}", EACH) for person in range(PEOPLE)]
    ours = {row["face_id"]: row["image"]["bytes"] for row in dataset.read("faces").to_pylist()}
    assert {face_id: bytes(data) for face_id, data, _ in rows} == ours
    assert {length for *_, length in rows} == {10}


def test_huggingface_datasets_decodes_every_image_by_itself(
    dataset: publish.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    from datasets import load_dataset  # it reads where its caches are once, when it is imported

    files = [
        file["path"]
        for file in json.loads((tmp_path / "faces" / "manifest.json").read_text())["files"]
        if file["kind"] == "faces"
    ]
    read = load_dataset(
        "parquet",
        data_files=[f"{dataset.folder}/{path}" for path in files],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    ours = dataset.read("faces").to_pylist()
    assert read["identity"] == [row["identity"] for row in ours]
    for theirs, row in zip(read, ours, strict=True):
        assert isinstance(theirs["image"], Image.Image)
        np.testing.assert_array_equal(np.asarray(theirs["image"]), pixels(row["image"]["bytes"]))


def test_duckdb_compares_embeddings(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, schema.EMBEDDING_DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [{"face_id": f"{at:02d}", "embedding": vector.tolist()} for at, vector in enumerate(vectors)]
    file = f"{tmp_path}/embeddings.parquet"
    storage.write_table(file, pa.Table.from_pylist(rows, schema.EMBEDDINGS))
    with duckdb.connect() as connection:
        found = connection.sql(
            f"""SELECT array_cosine_similarity(a.embedding::FLOAT[128], b.embedding::FLOAT[128])
            FROM '{file}' a, '{file}' b ORDER BY a.face_id, b.face_id"""
        ).fetchnumpy()
    similarity = next(iter(found.values())).reshape(20, 20)
    np.testing.assert_allclose(similarity, vectors @ vectors.T, atol=1e-5)
