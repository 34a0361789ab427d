"""Embeddings to numbers: an SVM on people the network never saw, always beside its controls."""

from __future__ import annotations

from facerec.cli import main
from facerec.evaluation.pipeline import EvaluateConfig, evaluate
from facerec.session import ray_session


def run(config: EvaluateConfig) -> None:
    """Score the unseen people and write report.json."""
    with ray_session():
        report = evaluate(config)
    for name, scores in report["identification"].items():
        print(f"evaluate: {name}: SVM accuracy {scores['accuracy']:.3f}")


if __name__ == "__main__":
    main("evaluate", EvaluateConfig, run)
