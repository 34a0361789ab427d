"""`make bench-evaluate`: 50,000 embeddings of 1,000 unseen people evaluated whole on 2 cores, with both controls.

The embeddings are drawn: unit vectors about a centre for each person, as close together as a usable network has them,
and farther apart for the untrained one. Faces are noise of 16 x 16 pixels about a colour. 100 further people choose.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from facerec import publish, schema, storage
from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.pipeline import evaluate
from facerec.models.embedder import ModelConfig, build
from facerec.models.format import save_model
from facerec.session import ray_session
from tests.bench.targets import Row, conclude
from tests.support.generations import generation
from tests.support.processes import descendants

PEOPLE, CHOOSERS, EACH = 1000, 100, 50
SHARD = 5000
NOISE = {"model": 1.0, "untrained": 2.5}
"""Standard deviation of a face about its person's centre, in units of the centres' own."""
MODEL = ModelConfig(side=64)


def main() -> None:
    """Write a run, evaluate it, print, and exit 1 where a target is missed."""
    with tempfile.TemporaryDirectory() as folder:
        config = write_run(Path(folder))
        with ray_session(num_cpus=2):
            stop, peak = threading.Event(), [0.0]
            watch = threading.Thread(target=_watch, args=(stop, peak))
            watch.start()
            started = time.monotonic()
            report = evaluate(config)
            seconds = time.monotonic() - started
            stop.set()
            watch.join()
        size = Path(config.out).stat().st_size
    rows = [
        Row(
            f"{PEOPLE * EACH:,} embeddings of {PEOPLE:,} people, two controls",
            seconds / 60,
            "min",
            at_most=15,
        ),
        Row("  memory of all processes at its most", peak[0], "GiB", at_most=6),
        Row("  report.json", size / 2**20, "MiB"),
    ]
    for part in ("identification", "verification", "clustering"):
        rows += [Row(f"  {part}, {name}", scores["seconds"], "s") for name, scores in report[part].items()]
    for name, scores in report["identification"].items():
        rows.append(Row(f"SVM of {scores['svm']['people']} people, {name}", scores["accuracy"], ""))
        rows.append(
            Row(f"nearest centroid of {PEOPLE} people, {name}", scores["nearest_centroid"]["accuracy"], "")
        )
        rows.append(Row(f"BCubed F, {name}", report["clustering"][name]["bcubed"]["f"], ""))
    conclude("bench-evaluate", rows, ["seconds are of tasks that run two at a time"])


def write_run(folder: Path) -> EvaluateConfig:
    """A finished run with its faces and both embeddings."""
    names = [f"person-{at:04d}" for at in range(PEOPLE + CHOOSERS)]
    person = np.random.default_rng(0).permutation(np.repeat(np.arange(len(names)), EACH))
    faces = _write(folder / "faces", "faces", _face_tables(person), {"counts": {}, "label_conflicts": []})
    pinned = {"folder": faces.folder, "generation": 1, "digest": faces.digest}
    split = {"train": [], "validation": names[PEOPLE:], "unseen": names[:PEOPLE]}
    storage.write_json(f"{folder}/run/run.json", {"split": split, "faces": pinned})
    for seed, model in enumerate(NOISE):
        card = save_model(f"{folder}/run/{model}", build(MODEL, seed), MODEL, {}, {})
        about = {"model_id": card.model_id, "faces_digest": faces.digest}
        _write(folder / f"of-{model}", "embeddings", _embedding_tables(person, model), about)
    paths = {name: f"{folder}/{name}" for name in ("run", "faces")}
    embeddings = {"embeddings": f"{folder}/of-model", "control": f"{folder}/of-untrained"}
    return EvaluateConfig(**paths, **embeddings, out=f"{folder}/report.json")


def _write(folder: Path, kind: str, tables: Iterator[pa.Table], about: dict[str, Any]) -> publish.Dataset:
    with generation(folder) as made:
        names = (f"{kind}-{number:05d}.parquet" for number in itertools.count())
        listed = [made.write(name, kind, table) for name, table in zip(names, tables, strict=False)]
        return made.publish(listed, {"preprocessing": {}, **about})


def _common(person: np.ndarray) -> Iterator[tuple[slice, dict[str, Any]]]:
    hashes = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, len(person))
    for at in range(0, len(person), SHARD):
        rows = slice(at, at + SHARD)
        identities = [f"person-{who:04d}" for who in person[rows]]
        uris = [f"/memory/{name}/{at + number}.jpg" for number, name in enumerate(identities)]
        yield rows, {"face_id": uris, "identity": identities, "source_uri": uris, "phash": hashes[rows]}


def _face_tables(person: np.ndarray) -> Iterator[pa.Table]:
    random = np.random.default_rng(2)
    colours = random.integers(60, 196, (person.max() + 1, 1, 1, 3))
    for rows, common in _common(person):
        noise = random.normal(0, 40, (len(common["face_id"]), 16, 16, 3))
        pixels = np.clip(colours[person[rows]] + noise, 0, 255).astype(np.uint8)
        images = [{"bytes": cv2.imencode(".jpg", image)[1].tobytes(), "path": None} for image in pixels]
        yield _table(common | {"image": images}, schema.FACES)


def _embedding_tables(person: np.ndarray, model: str) -> Iterator[pa.Table]:
    random = np.random.default_rng(3)
    centres = random.normal(size=(person.max() + 1, schema.EMBEDDING_DIM))
    for rows, common in _common(person):
        vectors = centres[person[rows]]
        vectors = vectors + NOISE[model] * random.normal(size=vectors.shape)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield _table(common | {"embedding": list(vectors.astype(np.float32))}, schema.EMBEDDINGS)


def _table(columns: dict[str, Any], rows: pa.Schema) -> pa.Table:
    """The columns given, in the schema's order, and nulls in the others."""
    count = len(columns["face_id"])
    arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in rows]
    return pa.table(arrays, schema=rows)


def _watch(stop: threading.Event, peak: list[float]) -> None:
    """Keep the most GiB that this process and all below it hold, shared pages shared out."""
    while not stop.wait(1):
        peak[0] = max(peak[0], sum(map(_proportional, (os.getpid(), *descendants(os.getpid())))) / 2**20)


def _proportional(process: int) -> float:
    """Pss in KiB; 0 where the process is gone."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith("Pss:")), 0.0)


if __name__ == "__main__":
    main()
