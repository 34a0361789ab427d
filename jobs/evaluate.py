"""Embeddings to numbers: SVM, verification and clustering of people the network never saw, always beside its controls."""

from __future__ import annotations

from typing import Any

from facerec import publish, storage
from facerec.cli import main
from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.gallery import open_inputs
from facerec.evaluation.pipeline import evaluate
from facerec.nodes import NodeSeconds
from facerec.session import ray_session

BYTES = 2048
"""A vector in memory, at most, where it is read and where it is selected."""


def run(config: EvaluateConfig) -> None:
    """Score the unseen people, or the pairs of a file, and write report.json."""
    with ray_session(), NodeSeconds() as held:
        report = evaluate(config)
    print(
        f"evaluate: {held.of(_vectors(publish.open_dataset(config.embeddings, 'jobs/embed.py')), 'vectors')}"
    )
    for name, scores in report.get("identification", {}).items():
        print(f"evaluate: {name}: SVM accuracy {scores['accuracy']:.3f}{_interval(scores)}")
    for name, scores in report["verification"].items():
        if "mean" in (accuracy := scores.get("accuracy", {})):
            print(f"evaluate: {name}: verification accuracy {accuracy['mean']:.3f}{_interval(accuracy)}")
    leakage = report["leakage"]
    if leakage["checked"] and (shared := leakage["people"]):
        print(f"evaluate: {shared} people were seen in training ({leakage['action']}); see {config.out}")


def plan(config: EvaluateConfig) -> dict[str, object]:
    """What would be scored, of folders that are known to belong together."""
    storage.require_writable_file(config.out, "--out")
    inputs = open_inputs(config)
    representations = [*inputs.datasets, *(["pixels"] if inputs.faces and not config.pairs else [])]
    vectors = _vectors(inputs.trained)
    unseen = f"{len(inputs.run['split']['unseen']):,} unseen" if inputs.run else "unseen"
    return {
        "embeddings": f"{vectors:,} in {config.embeddings}",
        "identities": unseen if config.people == "unseen" else "all in the embeddings",
        "parts": f"the pairs of {config.pairs}"
        if config.pairs
        else "identification, verification, clustering",
        "of": ", ".join(representations),
        "workers": f"{len(representations) * (1 if config.pairs else 3)} tasks of one core, as the cluster has them",
        "memory": f"driver {0.5 + vectors * len(representations) * BYTES / 2**30:.1f} GiB",
        "result": config.out,
    }


def _vectors(embeddings: publish.Dataset) -> int:
    return sum(file["rows"] for file in embeddings.manifest["files"] if file["kind"] == "embeddings")


def _interval(scores: dict[str, Any]) -> str:
    low, high = scores["interval"]
    return f" ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main("evaluate", EvaluateConfig, run, plan=plan)
