"""The evaluation stage: the trained network, the untrained one and bare pixels, on the same people and halves."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
import ray
import skops.io
from numpy.typing import NDArray

import facerec
from facerec import publish, scores, storage
from facerec.errors import MismatchError, SourceError
from facerec.evaluation.identification import Halves, halves, identify
from facerec.models.format import read_card
from facerec.models.images import decode_jpeg

PIXELS = 16
"""Side of the pixel control: what a face is without any network."""
FALSE_ACCEPT_RATE = 0.01
MAX_PAIR_FACES = 4000
"""Verification looks at all pairs of at most so many faces (8 million pairs, 60 MB)."""

Strings = NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Embeddings to numbers, on people that the run never saw."""

    run: str = "run"
    """Folder of the training run: it says who was never seen."""
    faces: str = "faces"
    """Folder of the aligned faces, for the pixel control."""
    embeddings: str = "embeddings"
    """Vectors of the trained network."""
    control: str = "untrained"
    """Vectors of the untrained network."""
    out: str = "report.json"
    """Where the numbers go; the fitted SVM goes beside them."""
    seed: int = 0
    """Decides the two halves of each person's photographs."""


@dataclass(frozen=True)
class Unseen:
    """The faces that are scored, in one order for all representations."""

    vectors: dict[str, NDArray[np.float32]]
    """trained, untrained, pixels: each [n, d]."""
    identities: Strings
    hashes: NDArray[np.int64]


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score, write report.json and the SVM, and give the report. Raises before work where things do not belong together."""
    faces = publish.open_dataset(config.faces, "jobs/align.py")
    trained = publish.open_dataset(config.embeddings, "jobs/embed.py")
    control = publish.open_dataset(config.control, "jobs/embed.py")
    run = storage.read_json(_run_file(config.run))
    _require_one_origin(config, faces, trained, control)
    unseen = _load(faces, trained, control, set(run["split"]["unseen"]))
    sides = halves(unseen.identities, unseen.hashes, config.seed)
    people = sorted(set(unseen.identities[sides.train].tolist()))
    if len(people) < 2:
        raise SourceError(
            f"{len(people)} unseen people have two different photographs; at least 2 are needed to tell apart "
            f"(more people in the source, or --split.unseen in training)"
        )
    tasks = {
        name: _score.remote(vectors, unseen, sides, config.seed) for name, vectors in unseen.vectors.items()
    }
    scored = {name: ray.get(task) for name, task in tasks.items()}
    report = {
        "headline": {name: scored[name][0]["accuracy"] for name in scored},
        "identification": {name: scored[name][0] for name in scored},
        "verification": {name: scored[name][1] for name in scored},
        "alignment": faces.manifest["counts"],
        "label_conflicts": len(faces.manifest["label_conflicts"]),
        "unseen_people": people,
        "left_out_people": sorted(set(unseen.identities.tolist()) - set(people)),
        "run": run,
        "embeddings": {"trained": trained.manifest["model_id"], "untrained": control.manifest["model_id"]},
        "config": asdict(config),
        "versions": _versions(),
    }
    storage.write_bytes(
        storage.join(storage.absolute(config.out).rsplit("/", 1)[0], "svm.skops"), scored["trained"][2]
    )
    storage.write_json(config.out, report)
    return report


def _run_file(run: str) -> str:
    uri = storage.join(storage.absolute(run), "run.json")
    if not storage.exists(uri):
        raise SourceError(f"{run} holds no run.json; run jobs/train.py first, or name another --run")
    return uri


def _require_one_origin(
    config: EvaluateConfig, faces: publish.Dataset, trained: publish.Dataset, control: publish.Dataset
) -> None:
    for flag, folder, dataset, model in (
        ("--embeddings", config.embeddings, trained, "model"),
        ("--control", config.control, control, "untrained"),
    ):
        if dataset.manifest["faces_digest"] != faces.digest:
            raise MismatchError(
                f"{folder} was made from other faces than {config.faces}; embed these faces again ({flag})"
            )
        # Another run's split would score people that this network was trained on, and look splendid.
        ours = read_card(storage.join(storage.absolute(config.run), model)).model_id
        if dataset.manifest["model_id"] != ours:
            raise MismatchError(
                f"{folder} was embedded by model {dataset.manifest['model_id']} and {config.run}/{model} is {ours}; "
                f"embed with {config.run}/{model} ({flag}) or name the run it belongs to (--run)"
            )
    if trained.manifest["model_id"] == control.manifest["model_id"]:
        raise MismatchError(
            f"{config.embeddings} and {config.control} come from the same model {trained.manifest['model_id']}; "
            f"the control must come from the untrained one (--control)"
        )


def _load(
    faces: publish.Dataset, trained: publish.Dataset, control: publish.Dataset, people: set[str]
) -> Unseen:
    """Rows of the unseen people. The three datasets hold the same faces in the same order."""
    tables = {"trained": trained.read("embeddings"), "untrained": control.read("embeddings")}
    identities = np.array([str(name) for name in tables["trained"]["identity"].to_pylist()])
    keep = np.flatnonzero(np.isin(identities, sorted(people)))
    if not len(keep):
        raise SourceError(
            f"none of the run's {len(people)} unseen people is in {faces.folder}; name its faces (--faces)"
        )
    vectors = {
        name: np.stack(table["embedding"].take(keep).to_numpy(zero_copy_only=False))
        for name, table in tables.items()
    }
    vectors["pixels"] = np.stack([_pixels(data) for data in _encoded(faces, keep)])
    hashes = tables["trained"]["phash"].to_numpy()[keep]
    return Unseen(vectors, identities[keep], hashes)


def _encoded(faces: publish.Dataset, keep: NDArray[np.int64]) -> Iterator[bytes]:
    first = 0
    for uri in faces.uris("faces"):
        images = storage.read_table(uri, ["image"])["image"]
        for row in keep[(keep >= first) & (keep < first + len(images))] - first:
            yield images[int(row)].as_py()["bytes"]
        first += len(images)


def _pixels(data: bytes) -> NDArray[np.float32]:
    return (
        cv2.resize(decode_jpeg(data), (PIXELS, PIXELS), interpolation=cv2.INTER_AREA)
        .ravel()
        .astype(np.float32)
    )


@ray.remote(num_cpus=1)
def _score(
    vectors: NDArray[np.float32], unseen: Unseen, sides: Halves, seed: int
) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Identification, verification and the SVM of one representation."""
    identification, svm = identify(vectors, unseen.identities, sides, seed)
    return identification, verify(vectors, unseen.identities), skops.io.dumps(svm)


def verify(vectors: NDArray[np.float32], identities: Strings) -> dict[str, Any]:
    """TAR at 1 % FAR over all pairs, or the reason why the pairs cannot carry it."""
    keep = np.linspace(0, len(vectors) - 1, min(len(vectors), MAX_PAIR_FACES)).astype(np.int64)
    pairs = scores.all_pairs(vectors[keep].astype(np.float64), identities[keep])
    counts = {
        "genuine_pairs": len(pairs.genuine),
        "impostor_pairs": len(pairs.impostor),
        "far": FALSE_ACCEPT_RATE,
    }
    if len(pairs.impostor) * FALSE_ACCEPT_RATE < 10:
        return {**counts, "tar": None, "reason": "too few impostor pairs"}
    return {**counts, "tar": scores.true_accept_rate(pairs, FALSE_ACCEPT_RATE)}


def _versions() -> dict[str, str]:
    names = ("ray", "torch", "facenet-pytorch", "scikit-learn", "opencv-python-headless", "pyarrow", "timm")
    return {
        "facerec": facerec.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }
