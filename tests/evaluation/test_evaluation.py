"""Evaluation end to end: what belongs together is scored beside its controls, and what does not is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from facerec import publish, schema, storage
from facerec.errors import MismatchError, SourceError
from facerec.evaluation.identification import load_svm
from facerec.evaluation.pipeline import EvaluateConfig, evaluate
from facerec.models.embedder import ModelConfig, build
from facerec.models.format import save_model
from tests.support.faces import write_faces

MODEL = ModelConfig(side=64)
PEOPLE, EACH = 6, 8


def write_embeddings(folder: Path, faces: publish.Dataset, vectors: Any, model_id: str) -> None:
    rows = faces.read(
        "faces", ["face_id", "identity", "source_uri", "phash", "box", "confidence"]
    ).to_pylist()
    known = {"model_id": model_id, "preprocessing_id": "p", "faces_generation": 1}
    table = pa.Table.from_pylist(
        [{**row, **known, "embedding": vector} for row, vector in zip(rows, vectors.tolist(), strict=True)],
        schema.EMBEDDINGS,
    )
    storage.write_table(f"{folder}/part.parquet", table)
    files = [publish.describe(str(folder), "part.parquet", "embeddings", len(rows))]
    publish.publish(str(folder), 1, files, {"model_id": model_id, "faces_digest": faces.digest})


@pytest.fixture
def folders(tmp_path: Path) -> EvaluateConfig:
    """Faces, a run whose people are all unseen, ideal vectors as trained and random ones as untrained."""
    faces = write_faces(tmp_path / "faces", PEOPLE, EACH)
    faces = publish.publish(
        faces.folder, 1, faces.manifest["files"], {**faces.manifest, "label_conflicts": []}
    )
    cards = {
        name: save_model(str(tmp_path / "run" / name), build(MODEL, seed), MODEL, faces.preprocessing, {})
        for seed, name in enumerate(("model", "untrained"))
    }
    names = sorted(set(faces.read("faces", ["identity"])["identity"].to_pylist()))
    storage.write_json(f"{tmp_path}/run/run.json", {"split": {"train": [], "unseen": names}})
    ideal = np.repeat(np.eye(PEOPLE, 128), EACH, axis=0)
    random = np.random.default_rng(0).normal(size=ideal.shape)
    write_embeddings(tmp_path / "trained", faces, ideal, cards["model"].model_id)
    write_embeddings(tmp_path / "control", faces, random, cards["untrained"].model_id)
    paths = {name: f"{tmp_path}/{name}" for name in ("run", "faces", "control")}
    return EvaluateConfig(**paths, embeddings=f"{tmp_path}/trained", out=f"{tmp_path}/report.json")


@pytest.mark.usefixtures("ray_local")
def test_ideal_vectors_score_one_and_random_ones_chance(folders: EvaluateConfig) -> None:
    report = evaluate(folders)
    assert storage.read_json(folders.out) == report
    trained, untrained = (report["identification"][name] for name in ("trained", "untrained"))
    assert trained["accuracy"] == trained["nearest_neighbour"] == 1.0
    assert report["verification"]["trained"]["tar"] in (None, 1.0)
    low, high = untrained["interval"]
    assert low <= 1 / PEOPLE <= high
    svm = load_svm(storage.read_bytes(folders.out.replace("report.json", "svm.skops")))
    assert svm.predict(np.eye(PEOPLE, 128)).tolist() == trained["people"]


def test_vectors_of_another_run_are_refused(folders: EvaluateConfig) -> None:
    swapped = EvaluateConfig(
        run=folders.run, faces=folders.faces, embeddings=folders.control, control=folders.embeddings
    )
    with pytest.raises(MismatchError, match="--embeddings"):
        evaluate(swapped)


def test_unseen_people_that_are_not_there_are_one_line(folders: EvaluateConfig) -> None:
    storage.write_json(f"{folders.run}/run.json", {"split": {"train": [], "unseen": ["nobody"]}})
    with pytest.raises(SourceError, match="none of the run's 1 unseen people"):
        evaluate(folders)
