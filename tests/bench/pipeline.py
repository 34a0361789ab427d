"""The pipeline as jobs that are submitted to a testbed, and whether two runs of it came to the same end.

Drawn photographs are aligned (``align``), a network is trained on the faces by two workers (``train``), the photographs
are embedded by it without faces on disk (``stream``), the faces are embedded by it and by the untrained network
(``embeddings``, ``untrained``), and people that it never saw are told apart (``evaluate``). Each stage is small, so that
nearly all the time under faults is Ray's recovery.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from cluster.testbed import Testbed, missing
from facerec import publish
from facerec.models.embedder import ModelConfig
from facerec.synthetic import SyntheticConfig, write_collection
from facerec.telemetry import read_json_lines
from facerec.training.batches import BatchConfig
from facerec.training.config import TrainConfig
from tests.bench.chaos import apart
from tests.bench.targets import Row
from tests.support.job import last_step
from tests.support.ray_job import ray_job, submit

PEOPLE, PHOTOGRAPHS, PART = 24, 20, 4
PARTS = PEOPLE * PHOTOGRAPHS // PART
LIMIT_S = 2400.0
ASK_S = 2.0
"""Seconds between two looks at a job that has no process."""


class Submitted:
    """A job of jobs/ by ``ray job submit`` from the head, submitted again by the same command until it has ended well."""

    def __init__(self, testbed: Testbed, stage: Stage) -> None:
        self.submissions = 0
        self.gave_up = 0
        """Times that the job failed by itself."""
        self._testbed, self._name = testbed, f"{stage.run}-{stage.name}"
        self._command = [sys.executable, f"jobs/{stage.job}", *stage.arguments]
        self._asked = 0.0
        self._killed = False
        self._submit()

    def driver(self) -> int | None:
        """The process id of the job on the head, on this machine; None where it does not run."""
        begins = " ".join(self._command[:2])
        for pid, said in self._testbed.processes("head"):
            if said.startswith(begins):
                return pid
        return None

    def kill(self) -> bool:
        """SIGKILL the driver; False where there is none."""
        if driver := self.driver():
            os.kill(driver, signal.SIGKILL)
            self._killed = True
        return driver is not None

    def ended_well(self) -> bool:
        """Whether the job is done; submits it again where it has ended otherwise."""
        if self.driver() or time.monotonic() < self._asked + ASK_S:
            return False
        self._asked = time.monotonic()
        status = ray_job(self._testbed, "status", self._id).stdout.lower()
        if "succeeded" in status:
            return True
        if "failed" in status or "stopped" in status:
            if not self._killed:
                self.gave_up += 1
                print(f"     {self._id} gave up by itself: {self.said()[-1500:]}", flush=True)
            self._submit()
        return False

    def said(self) -> str:
        """What the last submission printed."""
        return ray_job(self._testbed, "logs", self._id).stdout

    @property
    def _id(self) -> str:
        return f"{self._name}-{self.submissions}"

    def _submit(self) -> None:
        self.submissions, self._killed = self.submissions + 1, False
        done = submit(self._testbed, self._id, self._command, "--no-wait")
        if done.returncode:
            raise SystemExit(f"{self._id}: {done.stdout}{done.stderr}")


@dataclass(frozen=True)
class Stage:
    """One job of the pipeline."""

    run: str
    """Tells it from the same stage of another run."""
    name: str
    job: str
    arguments: list[str]
    progress: Callable[[], int]
    """How far it is; a stage whose inside is not seen from outside stays at 0."""


class Pipeline:
    """Where a run of the pipeline lies, and its stages in order."""

    def __init__(self, photographs: Path, out: Path, steps: int) -> None:
        self.out = out
        out.mkdir()
        train = TrainConfig(
            faces=str(out / "faces"),
            run=str(out / "run"),
            model=ModelConfig(side=32, dropout=0.1),
            batch=BatchConfig(p=8, k=4, micro_batch=8),
            steps=steps,
            num_workers=2,
            checkpoint_every=5,
            log_every=1,
        )
        (out / "train.yaml").write_text(yaml.safe_dump({"train": asdict(train)}))
        source = [str(photographs), "--part", str(PART)]
        vectors = ["--model", str(out / "run/model"), "--precision", "fp32", "--backend", "torch"]
        self.stages = [
            Stage(
                out.name,
                "align",
                "align.py",
                ["--source", *source, "--out", f"{out}/faces"],
                self._parts("faces"),
            ),
            Stage(out.name, "train", "train.py", ["--config", f"{out}/train.yaml"], self.step),
            Stage(
                out.name,
                "stream",
                "embed.py",
                ["--photos", *source, "--take", "subject", *vectors, "--out", f"{out}/stream"],
                self._parts("stream"),
            ),
            *(
                Stage(
                    out.name,
                    folder,
                    "embed.py",
                    ["--faces", f"{out}/faces", "--model", f"{out}/run/{model}", "--out", f"{out}/{folder}"],
                    self._parts(folder),
                )
                for folder, model in {"embeddings": "model", "untrained": "untrained"}.items()
            ),
            Stage(out.name, "evaluate", "evaluate.py", self._compared(), lambda: 0),
        ]

    def _compared(self) -> list[str]:
        names = {"embeddings": "embeddings", "control": "untrained", "run": "run", "faces": "faces"}
        folders = [word for flag, name in names.items() for word in (f"--{flag}", f"{self.out}/{name}")]
        return [*folders, "--out", f"{self.out}/report.json"]

    def step(self) -> int:
        """The last step in the metrics."""
        return last_step(self.out / "run" / "metrics.jsonl")

    def parts(self) -> dict[str, int]:
        """The finished parts of all stages, and when each was written."""
        found = {}
        for path in self.out.glob("*/parts/*.parquet"):
            with contextlib.suppress(FileNotFoundError):
                found[str(path.relative_to(self.out))] = path.stat().st_mtime_ns
        return found

    def _parts(self, folder: str) -> Callable[[], int]:
        return lambda: len(list((self.out / folder / "parts").glob("*.parquet")))

    def rows(self, folder: str, kind: str, order: str) -> pa.Table:
        """All rows of a published dataset, sorted."""
        return publish.open_dataset(str(self.out / folder), "the pipeline").read(kind).sort_by(order)

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of the training's metrics."""
        return read_json_lines(str(self.out / "run" / "metrics.jsonl"))

    def weights(self) -> bytes:
        """Of the trained model, as they lie on disk."""
        return (self.out / "run/model/model.safetensors").read_bytes()

    def report(self) -> dict[str, Any]:
        """What the evaluation found."""
        report: dict[str, Any] = json.loads((self.out / "report.json").read_text())
        return report


@contextlib.contextmanager
def hosts_and_two_runs(
    name: str, steps: int
) -> Iterator[tuple[Testbed, Pipeline, Pipeline, dict[str, float]]]:
    """A head and three workers; a run that nobody disturbed, one that has not begun, and seconds by stage of the first.

    Exits where this machine can have no testbed; nothing is left, however the block ends.
    """
    if lacking := missing():
        raise SystemExit(f"{name}: {lacking}")
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    environment = {"GLOO_SOCKET_IFNAME": "eth0"}
    try:
        write_collection(folder / "photographs", SyntheticConfig(identities=PEOPLE, photographs=PHOTOGRAPHS))
        with Testbed(hosts=3, name=name, shared=(folder,), environment=environment) as testbed:
            quiet, other = (
                Pipeline(folder / "photographs", folder / run, steps) for run in ("undisturbed", "disturbed")
            )
            alone = {stage.name: undisturbed(testbed, stage) for stage in quiet.stages}
            yield testbed, quiet, other, alone
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def undisturbed(testbed: Testbed, stage: Stage) -> float:
    """Seconds of a stage that nobody disturbs, from submission to its end."""
    began = time.monotonic()
    job = Submitted(testbed, stage)
    while not job.ended_well():
        if job.gave_up or time.monotonic() > began + LIMIT_S:
            raise SystemExit(f"the undisturbed {stage.name} failed\n{job.said()[-3000:]}")
        time.sleep(0.1)
    print(f"{stage.name}: {time.monotonic() - began:.0f} s undisturbed", flush=True)
    return time.monotonic() - began


def differences(one: Pipeline, other: Pipeline) -> list[Row]:
    """What two runs of the pipeline have in common, as rows with a target: all of it."""
    faces, theirs = (run.rows("faces", "faces", "face_id") for run in (one, other))
    vectors, others = (run.rows("stream", "embeddings", "face_id") for run in (one, other))
    steps, again = one.metrics(), other.metrics()
    return [
        Row("faces, undisturbed", faces.num_rows, ""),
        _equal("the same face_ids", faces["face_id"], theirs["face_id"]),
        Row("boxes apart, at most", apart(faces["box"], theirs["box"]), "px", at_most=0.01),
        _equal("the same pixels", faces["image"], theirs["image"]),
        *(
            _equal(f"the same rejects of {folder}", *(_rejects(run, folder) for run in (one, other)))
            for folder in ("faces", "stream")
        ),
        _equal("each step once", [line["step"] for line in steps], [line["step"] for line in again]),
        _equal("the same batches", [line["batches"] for line in steps], [line["batches"] for line in again]),
        _equal("the same weights, bit for bit", one.weights(), other.weights()),
        _equal("vectors of the same faces", vectors["face_id"], others["face_id"]),
        Row("vectors apart, at most", apart(vectors["embedding"], others["embedding"]), "", at_most=1e-5),
        Row("SVM on people never seen", one.report()["headline"]["trained"], ""),
        Row("  the same", one.report()["headline"] == other.report()["headline"], "1 is yes", at_least=1),
    ]


def _equal(what: str, one: Any, other: Any) -> Row:
    return Row(what, one == other, "1 is yes", at_least=1)


def _rejects(run: Pipeline, folder: str) -> pa.Table:
    return run.rows(folder, "rejects", "source_uri").select(["source_uri", "reason"])
