"""Photographs to report, every stage in order; finished stages are not redone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from facerec import storage
from facerec.alignment.pipeline import AlignConfig, align_source
from facerec.cli import main
from facerec.embedding.pipeline import EmbedConfig, embed_faces
from facerec.errors import ConfigError
from facerec.evaluation.pipeline import EvaluateConfig, evaluate
from facerec.reporting.page import ReportConfig, write_report
from facerec.session import ray_session
from facerec.training.config import TrainConfig
from facerec.training.fit import train


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Every stage's settings; the pipeline itself says where things lie, below ``out``."""

    source: str
    """Photographs: a folder per person, or a .csv/.parquet manifest with uri, identity; local or s3://."""
    out: str
    """Everything goes below this folder: faces/, run/, embeddings/, untrained/, report.json, report.html."""
    align: AlignConfig = AlignConfig()
    """Photographs to faces."""
    train: TrainConfig = TrainConfig()
    """Faces to a model."""
    embed: EmbedConfig = EmbedConfig()
    """Faces to vectors, by the trained and by the untrained network."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Vectors to numbers."""
    report: ReportConfig = ReportConfig()
    """Numbers to a page."""

    def __post_init__(self) -> None:
        if self.train.workers == (0, 0):
            raise ConfigError(
                f"num_workers is {self.train.num_workers}; the pipeline trains on Ray (--train.num_workers >= 1)"
            )


def run(config: PipelineConfig) -> dict[str, Any]:
    """All stages in order; gives what report.json holds."""
    out = storage.absolute(config.out)
    faces, trained = storage.join(out, "faces"), storage.join(out, "run")
    vectors, control = storage.join(out, "embeddings"), storage.join(out, "untrained")
    numbers, page = storage.join(out, "report.json"), storage.join(out, "report.html")
    with ray_session():
        align_source(replace(config.align, source=config.source, faces=faces))
        train(replace(config.train, faces=faces, run=trained))
        embed_faces(replace(config.embed, faces=faces, model=storage.join(trained, "model"), out=vectors))
        embed_faces(replace(config.embed, faces=faces, model=storage.join(trained, "untrained"), out=control))
        report = evaluate(
            replace(
                config.evaluate, run=trained, faces=faces, embeddings=vectors, control=control, out=numbers
            )
        )
    write_report(replace(config.report, faces=faces, run=trained, report=numbers, out=page))
    for name, scores in report["identification"].items():
        low, high = scores["interval"]
        print(
            f"pipeline: SVM on people never seen, {name:9}: {scores['accuracy']:.3f} ({low:.3f} to {high:.3f})"
        )
    print(f"pipeline: {page}", flush=True)
    return report


if __name__ == "__main__":
    main("pipeline", PipelineConfig, run)
