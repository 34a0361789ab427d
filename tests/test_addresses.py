"""Addresses that nothing can read or write are refused in one line that names the flag, before any work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from facerec import publish, storage
from facerec.alignment.config import AlignConfig
from facerec.alignment.pipeline import align_source
from facerec.alignment.pipeline import plan as align_plan
from facerec.cli import main, parse
from facerec.erasure.pipeline import EraseConfig
from facerec.errors import ConfigError, FacerecError
from facerec.evaluation.config import EvaluateConfig
from facerec.models.export import ExportConfig
from facerec.naming.pipeline import IdentifyConfig
from facerec.reporting.page import ReportConfig, write_report
from facerec.training.config import TrainConfig
from facerec.training.fit import train
from facerec.training.forecast import forecast
from jobs import evaluate as evaluate_job
from jobs import report as report_job
from jobs.embed import EmbedJobConfig
from jobs.pipeline import PipelineConfig
from tests.support.faces import write_faces

FLAGS: list[tuple[str, type[Any], list[str]]] = [
    ("align", AlignConfig, ["--source", "--out"]),
    ("train", TrainConfig, ["--faces", "--run", "--init"]),
    ("embed", EmbedJobConfig, ["--faces", "--photos", "--model", "--out"]),
    ("evaluate", EvaluateConfig, ["--embeddings", "--control", "--run", "--faces", "--pairs", "--out"]),
    ("report", ReportConfig, ["--faces", "--run", "--report", "--embeddings", "--out"]),
    ("identify", IdentifyConfig, ["--embeddings", "--gallery", "--report", "--strangers", "--out"]),
    ("export", ExportConfig, ["--model", "--out", "--faces"]),
    ("pipeline", PipelineConfig, ["--source", "--out", "--train.init"]),
    ("erase", EraseConfig, ["--source", "--root+"]),
]
REQUIRED = {"pipeline": ["--source", "photographs", "--out", "work"], "erase": ["--root+", "work"]}
ADDRESSES = (
    "gs://bucket/x",
    "S3://bucket/x",
    "s3a://bucket/x",
    "file:///x",
    "s3://",
    "s3:///x",
    "abfs://x",
    "hf://x",
    r"C:\x",
    "C:/x",
)


@pytest.mark.parametrize(
    "job, config, flag", [(job, config, flag) for job, config, flags in FLAGS for flag in flags]
)
def test_every_flag_refuses_what_it_cannot_reach_and_is_named(job: str, config: type[Any], flag: str) -> None:
    for address in ADDRESSES:
        with pytest.raises(ConfigError, match=rf"is not supported.*{flag.rstrip('+')}") as caught:
            parse(job, config, [*REQUIRED.get(job, []), flag, address])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verb", [[], ["--dry-run"]])
def test_a_job_ends_with_one_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    """It wrote to ./gs:/bucket/x and said that it was published."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    argv = ["--source", "photographs", "--out", "gs://bucket/x", *verb]
    with pytest.raises(SystemExit) as left:
        main("align", AlignConfig, lambda _: pytest.fail("ran"), argv, plan=lambda _: pytest.fail("planned"))
    assert left.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "gs://bucket/x is not supported" in said[0]
    assert "(--out)" in said[0]
    assert os.listdir(tmp_path) == ["photographs"]


def test_a_preset_at_a_foreign_address_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"gs://bucket/x\.yaml is not supported.*--config"):
        parse("align", AlignConfig, ["--config", "gs://bucket/x.yaml"])


def test_an_identity_is_no_address(tmp_path: Path) -> None:
    argv = ["--root+", str(tmp_path), "--identity", "AC:/DC"]
    assert parse("erase", EraseConfig, argv).identity == "AC:/DC"


Attempt = Callable[[str], object]


@pytest.fixture
def attempts(tmp_path: Path) -> dict[str, tuple[Attempt, Attempt]]:
    """By job: what plans to write to an address, and what writes."""
    photographs = tmp_path / "photographs"
    for name in ("Ada", "Bo"):
        (photographs / name).mkdir(parents=True)
        (photographs / name / "1.jpg").write_bytes(b"x")
    faces = write_faces(tmp_path / "faces", 12, 6, side=64).folder

    def align(out: str) -> AlignConfig:
        return AlignConfig(source=str(photographs), out=out)

    def training(run: str) -> TrainConfig:
        return TrainConfig(faces=faces, run=run, num_workers=0)

    def report(out: str) -> ReportConfig:
        return ReportConfig(faces=faces, out=out)

    return {
        "align": (lambda out: align_plan(align(out)), lambda out: align_source(align(out))),
        "train": (lambda out: forecast(training(out)), lambda out: train(training(out))),
        "report": (lambda out: report_job.plan(report(out)), lambda out: write_report(report(out))),
        "evaluate": (
            lambda out: evaluate_job.plan(EvaluateConfig(out=out)),
            lambda out: evaluate_job.evaluate(EvaluateConfig(out=out)),
        ),
    }


@pytest.mark.parametrize("job", ["align", "train", "report", "evaluate"])
def test_a_dry_run_refuses_a_place_that_the_run_would_refuse(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attempts: dict[str, tuple[Attempt, Attempt]],
    job: str,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "read-only").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "read-only" not in str(path) and access(path, mode))
    before = sorted(tmp_path.rglob("*"))
    for below, words in ("file", "is a file"), ("read-only", "is read-only"), ("gs:", "not supported"):
        out = "gs://bucket/out" if below == "gs:" else str(tmp_path / below / "out")
        for attempt in attempts[job]:
            with pytest.raises(FacerecError, match=words) as caught:
                attempt(out)
            assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_writable_is_accepted(tmp_path: Path) -> None:
    storage.require_writable(str(tmp_path / "a" / "b"), "--out")
    storage.require_writable_file(str(tmp_path / "a" / "b.json"), "--out")
    with pytest.raises(ConfigError, match=r"is a folder; a file is needed.*--out"):
        storage.require_writable_file(str(tmp_path), "--out")
    assert not publish.claimed(str(tmp_path / "a"), {}, "--out")
    assert not any(tmp_path.iterdir())
