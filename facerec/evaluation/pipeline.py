"""The evaluation stage: the trained network, the untrained one and bare pixels, on the same people, halves and pairs.

Each part of each representation is a Ray task; report.json says beside its numbers which data chose every threshold.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import ray

import facerec
from facerec import lock, records, storage
from facerec.errors import SourceError
from facerec.evaluation import clustering, identification, leakage
from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.gallery import (
    Cast,
    Faces,
    Inputs,
    load,
    names_of,
    open_inputs,
    read_seen,
    vectors_of,
)
from facerec.evaluation.identification import Enrolment, enrol
from facerec.evaluation.leakage import Seen, photographs_of_people
from facerec.evaluation.pairs import Pairs, all_pairs, given_pairs, hardest, locate, read_pairs
from facerec.evaluation.verification import verify
from facerec.session import cores
from facerec.svm import save_svm
from facerec.telemetry import Prometheus

FORMAT = 5
"""Of report.json; report.schema.json describes it."""
PARTS = ("identification", "verification", "clustering")
CHOSEN_ON = {
    "svm": "cross-validation within the training half of the photographs",
    "svm_temperature": "held-out folds of the training half of the photographs",
    "rejection_thresholds": "for each fold of people and strangers, the people and strangers of the other folds",
    "accuracy_thresholds": "for each fold of pairs, the pairs of the other folds",
    "true_accept_thresholds": "the impostor pairs that are reported: a point of their ROC, not a forecast",
}


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score, write report.json (and the SVM), and give the report. Raises before work if inputs do not belong together.

    The folder of the report is locked for all of it: an SVM and its report are of one evaluation. Killed between the two,
    the same command writes both again; until then the report's hash is not that of the SVM, and nobody uses it.
    """
    storage.require_writable_file(config.out, "--out")
    out = storage.absolute(config.out)
    with lock.exclusive(out.rpartition("/")[0], "--out") as fence:
        report, svm = _scored(config)
        if svm:
            fence.write(storage.join(fence.folder, "svm.skops"), svm)
        fence.write_json(out, report)
    return report


def _scored(config: EvaluateConfig) -> tuple[dict[str, Any], bytes]:
    """The report, and the SVM that it is about; without one for given pairs."""
    inputs = open_inputs(config)
    seen = read_seen(config, inputs)
    scored = _given_pairs(config, inputs, seen) if config.pairs else _people(config, inputs, seen)
    svm: bytes = scored.pop("skops", b"")
    if svm:
        digest = hashlib.sha256(svm).hexdigest()
        scored["svm"] = {"sha256": digest, "model_id": inputs.trained.manifest["model_id"]}
    report = {
        "format": FORMAT,
        "config": asdict(config),
        "run": inputs.run,
        "embeddings": {name: dataset.manifest["model_id"] for name, dataset in inputs.datasets.items()},
        "alignment": inputs.faces.manifest["counts"] if inputs.faces else None,
        "label_conflicts": len(inputs.faces.manifest["label_conflicts"]) if inputs.faces else None,
        "versions": _versions(),
        **scored,
    }
    report["shows"] = records.in_report(report).to_json()
    return report, svm


def _people(config: EvaluateConfig, inputs: Inputs, seen: Seen | None) -> dict[str, Any]:
    """Identification, verification and clustering of a run's unseen people, or of everybody."""
    faces, cast, leaks = load(config, inputs, seen)
    scored = faces.of(cast.scored)
    photographs = photographs_of_people(scored.identities, scored.hashes)
    enrolled = enrol(scored.identities, photographs, config, leaks.people if leaks else set())
    people = sorted(set(enrolled.identities[enrolled.train].tolist()))
    if len(people) < 2:
        raise SourceError(
            f"{len(people)} of the {len(cast.scored)} people to score have two different photographs; at least 2 are needed "
            f"to tell apart: add people or photographs, or hold out more people in training (--split.unseen)"
        )
    results = _all_tasks(config, faces, scored, cast, enrolled)
    models = {name: scores["identification"].pop("skops") for name, scores in results.items()}
    return {
        "skops": models["trained"],
        "headline": {name: scores["identification"]["accuracy"] for name, scores in results.items()},
        **{part: {name: scores[part] for name, scores in results.items()} for part in PARTS},
        "unseen_people": people,
        "left_out_people": sorted(cast.scored - set(people)),
        "leakage": leakage.describe(leaks, seen, config.leakage),
        "chosen_on": CHOSEN_ON | {"clustering_parameters": cast.who_chooses},
    }


def _all_tasks(
    config: EvaluateConfig, faces: Faces, scored: Faces, cast: Cast, enrolled: Enrolment
) -> dict[str, dict[str, Any]]:
    """Every part of every representation, as many at a time as the cluster has cores; each says how long it took."""
    choosers = faces.of(cast.choosers)
    clustered = ~np.isin(scored.identities, sorted(cast.choosers))
    shared = ray.put(enrolled)
    again = config.replicates, config.seed
    tasks: dict[str, dict[str, Any]] = {}
    for name, vectors in scored.vectors.items():
        rows = ray.put(vectors)
        others = choosers.vectors[name], choosers.identities
        tasks[name] = {
            "clustering": _timed.remote(_cluster, rows, scored.identities, clustered, *others, *again),
            "identification": _timed.remote(_identify, rows, shared, config.seed, cores()),
            "verification": _timed.remote(_verify_all, rows, scored.identities, scored.face_ids, *again),
        }
    return _results(tasks, Prometheus("facerec_evaluate", config.out))


def _results(tasks: dict[str, dict[str, Any]], gauges: Prometheus) -> dict[str, dict[str, Any]]:
    """What the tasks come to; each is told of as it ends."""
    names = {task: (name, part) for name, parts in tasks.items() for part, task in parts.items()}
    waiting, took = list(names), dict.fromkeys(PARTS, 0.0)
    found: dict[str, dict[str, Any]] = {name: {} for name in tasks}
    while waiting:
        (task, *_), waiting = ray.wait(waiting)
        name, part = names[task]
        found[name][part] = scores = ray.get(task)
        took[part] += scores["seconds"]
        gauges.write(
            {"parts": len(names) - len(waiting), "parts_left": len(waiting)}
            | {f"seconds/{part}": seconds for part, seconds in took.items()}
            | {
                f"accuracy/{name}": parts["identification"]["accuracy"]
                for name, parts in found.items()
                if "identification" in parts
            }
        )
        print(
            f"evaluate: {part} of {name}, {scores['seconds']:.1f} s; {len(waiting)} of {len(names)} parts left",
            flush=True,
        )
    return found


@ray.remote(num_cpus=1)
def _timed(part: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a part says, and how long it took."""
    started = time.monotonic()
    return {**part(*arguments), "seconds": time.monotonic() - started}


def _identify(vectors: Any, enrolled: Enrolment, seed: int, cores: int) -> dict[str, Any]:
    numbers, model = identification.identify(vectors, enrolled, seed, cores)
    return {**numbers, "skops": save_svm(model)}


def _verify_all(vectors: Any, identities: Any, face_ids: Any, replicates: int, seed: int) -> dict[str, Any]:
    pairs = all_pairs(vectors, identities, seed)
    return _verify(pairs, face_ids.tolist(), identities.tolist(), replicates, seed)


def _verify(
    pairs: Pairs, face_ids: list[str], identities: list[str], replicates: int, seed: int
) -> dict[str, Any]:
    return verify(pairs, replicates, seed) | {"hardest": hardest(pairs, face_ids, identities)}


def _cluster(vectors: Any, identities: Any, clustered: Any, *others: Any) -> dict[str, Any]:
    return clustering.cluster(vectors[clustered], identities[clustered], *others)


def _given_pairs(config: EvaluateConfig, inputs: Inputs, seen: Seen | None) -> dict[str, Any]:
    """Verification of the pairs of a file; all of them are accounted for."""
    assert config.pairs is not None
    listed = read_pairs(config.pairs)
    table = inputs.trained.read("embeddings", ["face_id", "identity", "source_uri", "phash"])
    photographs = {*listed.left, *listed.right}
    rows = locate(photographs, table["source_uri"].to_pylist(), config.embeddings)
    people = {each.name for each in photographs}
    owners = np.array([each.name for each in rows])
    hashes = table["phash"].to_numpy()[list(rows.values())]
    leaks = leakage.find(people, owners, hashes, seen) if seen else None
    keep = np.ones(len(listed.left), bool)
    if leaks and config.leakage == "exclude":
        pairs = zip(listed.left, listed.right, strict=True)
        keep = np.array([not {left.name, right.name} & leaks.people for left, right in pairs])
        if not keep.any():
            raise SourceError(
                f"each of the {len(keep)} pairs of {config.pairs} has a person whom {config.run} has seen in training; "
                f"take other pairs, or score them nevertheless (--leakage report)"
            )
    about = table["face_id"].to_pylist(), names_of(table).tolist()
    again = config.replicates, config.seed
    tasks = {
        name: {
            "verification": _timed.remote(
                _verify, given_pairs(listed, rows, vectors_of(dataset)).only(keep), *about, *again
            )
        }
        for name, dataset in inputs.datasets.items()
    }
    found = _results(tasks, Prometheus("facerec_evaluate", config.out))
    return {
        "verification": {name: parts["verification"] for name, parts in found.items()},
        "pairs": {
            "listed": len(keep),
            "scored": int(keep.sum()),
            "excluded_for_leakage": int((~keep).sum()),
            "photographs": len(photographs),
            "photographs_without_face": len(photographs) - len(rows),
            "rule": "a photograph without a face is infinitely far from every other: its pairs are called two people, and count",
        },
        "leakage": leakage.describe(leaks, seen, config.leakage),
        "chosen_on": {name: CHOSEN_ON[name] for name in ("accuracy_thresholds", "true_accept_thresholds")},
    }


def _versions() -> dict[str, str]:
    names = ("ray", "torch", "facenet-pytorch", "scikit-learn", "opencv-python-headless", "pyarrow", "timm")
    return {
        "facerec": facerec.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }
