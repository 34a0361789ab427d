"""Photographs to report, every stage in order; finished stages are not redone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from facerec import pool, storage
from facerec.alignment.config import AlignConfig
from facerec.alignment.pipeline import align_source, listed
from facerec.alignment.pipeline import plan as align_plan
from facerec.cli import main
from facerec.embedding.config import EmbedConfig
from facerec.embedding.pipeline import embed_faces
from facerec.errors import ConfigError, MismatchError, SourceError
from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.pipeline import evaluate
from facerec.reporting.page import ReportConfig, write_report
from facerec.session import ray_session
from facerec.training.config import TrainConfig
from facerec.training.fit import train
from facerec.training.forecast import forecast
from facerec.training.plan import absolute, claimed_steps, fitted


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
        if self.align.faces == "all":
            raise ConfigError(
                "faces is all, which gives no names to train on; the pipeline needs --align.faces subject"
            )
        if self.train.workers == (0, 0):
            raise ConfigError(
                f"num_workers is {self.train.num_workers}; the pipeline trains on Ray (--train.num_workers >= 1)"
            )


def run(config: PipelineConfig) -> dict[str, Any]:
    """Run all stages in order and return the content of report.json."""
    out = storage.absolute(config.out)
    faces, trained = storage.join(out, "faces"), storage.join(out, "run")
    vectors, control = storage.join(out, "embeddings"), storage.join(out, "untrained")
    numbers, page = storage.join(out, "report.json"), storage.join(out, "report.html")
    align = replace(config.align, source=config.source, out=faces)
    listing = listed(align)
    require_enough(listing.photographs, config)
    training = replace(config.train, faces=faces, run=trained)
    require_same_model(training, vectors)
    with ray_session():
        pool.require_gpu(config.align, "--align.gpu")
        pool.require_gpu(config.embed, "--embed.gpu")
        align_source(align, listing)
        train(training)
        embed_faces(replace(config.embed, faces=faces, model=storage.join(trained, "model"), out=vectors))
        embed_faces(replace(config.embed, faces=faces, model=storage.join(trained, "untrained"), out=control))
        report = evaluate(
            replace(
                config.evaluate, run=trained, faces=faces, embeddings=vectors, control=control, out=numbers
            )
        )
    write_report(
        replace(config.report, faces=faces, run=trained, report=numbers, embeddings=vectors, out=page)
    )
    for name, scores in report["identification"].items():
        low, high = scores["interval"]
        print(
            f"pipeline: SVM on people never seen, {name:9}: {scores['accuracy']:.3f} ({low:.3f} to {high:.3f})"
        )
    print(f"pipeline: {page}", flush=True)
    return report


def require_enough(photographs: pa.Table, config: PipelineConfig) -> None:
    """Raise FacerecError, before alignment, if these photographs are too few to train on or to score.

    Alignment may still lose some of them: training and evaluation count the faces again.
    """
    named = photographs.filter(photographs["identity"].is_valid())["identity"].value_counts()
    counts = {entry["values"]: entry["counts"] for entry in named.to_pylist()}
    split, _, _ = fitted(counts, config.train, "photographs")
    scored = sum(counts[name] >= 2 for name in split.unseen)
    if scored < 2:
        raise SourceError(
            f"{scored} of the {len(split.unseen)} identities held out for the score have 2 photographs or more, and 2 "
            f"are needed to tell apart; add photographs or people to {config.source} (--source), or hold out more "
            f"(--train.split.unseen)"
        )


def require_same_model(config: TrainConfig, vectors: str) -> None:
    """Raise MismatchError, before training, if the run would go on with more steps and ``vectors`` are of its old model."""
    before = claimed_steps(absolute(config))
    if before not in (None, config.steps) and storage.exists(storage.join(vectors, "claim.json")):
        raise MismatchError(
            f"{vectors} holds vectors of the model after {before} steps, and the run would go on to {config.steps}; "
            "remove that folder, or choose another --out or the same --train.steps"
        )


def plan(config: PipelineConfig) -> dict[str, object]:
    """The plan of alignment, and that of training if there are faces to plan with."""
    out = storage.absolute(config.out)
    faces = storage.join(out, "faces")
    align = replace(config.align, source=config.source, out=faces)
    listing = listed(align)
    require_enough(listing.photographs, config)
    training = replace(config.train, faces=faces, run=storage.join(out, "run"))
    require_same_model(training, storage.join(out, "embeddings"))
    stages = {"align": align_plan(align, listing)}
    if storage.exists(storage.join(faces, "manifest.json")):
        stages["train"] = forecast(training)
    rest = [stage for stage in ("train", "embed", "evaluate", "report") if stage not in stages]
    return {f"{stage}: {name}": value for stage, plan in stages.items() for name, value in plan.items()} | {
        "then": f"{', '.join(rest)}, planned from what comes before them"
    }


if __name__ == "__main__":
    main("pipeline", PipelineConfig, run, plan=plan)
