"""The training job that tests and benchmarks of faults disturb: its faces, its command, and how far it has come.

It trains on drawn faces (24 people of 6, aligned by the landmarks that they were drawn with), at side 32, by batches of
8 x 4 in four micro-batches, two workers: a step costs little, so that nearly all the time is Ray's recovery.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import yaml

from facerec.models.embedder import ModelConfig
from facerec.training.batches import BatchConfig
from facerec.training.config import TrainConfig
from tests.support.faces import write_drawn_faces

ROOT = Path(__file__).parents[2]


class Restartable:
    """A job of jobs/, started and started again by the same command, with one log of all its drivers."""

    def __init__(self, job: str, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
        self._command = [sys.executable, str(ROOT / "jobs" / job), *arguments]
        self._log, self._environment = log, os.environ | {"PYTHONPATH": str(ROOT)} | environment

    def start(self, *inside: str) -> subprocess.Popen[bytes]:
        """The driver, as a process; ``inside`` is a command that takes it to another host."""
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*inside, *self._command], stdout=log, stderr=log, cwd=ROOT, env=self._environment
            )

    def said(self) -> str:
        """The end of what all its drivers printed: for the message of a failure."""
        return self._log.read_text(errors="replace")[-3000:] if self._log.exists() else ""


class Job(Restartable):
    """``jobs/train.py`` on one run folder, below ``folder``, started and started again by the same command."""

    def __init__(
        self,
        folder: Path,
        name: str,
        steps: int,
        environment: dict[str, str],
        num_workers: int | tuple[int, int] = 2,
        checkpoint_every: int = 5,
    ) -> None:
        self.run, preset = folder / name, folder / f"{name}.yaml"
        super().__init__("train.py", ["--config", str(preset)], folder / f"{name}.log", environment)
        faces = folder / "faces"
        if not faces.exists():
            write_drawn_faces(faces, 24, 6, side=64)
        config = TrainConfig(
            faces=str(faces),
            run=str(self.run),
            model=ModelConfig(side=32, dropout=0.1),
            batch=BatchConfig(p=8, k=4, micro_batch=8),
            steps=steps,
            num_workers=num_workers,
            checkpoint_every=checkpoint_every,
            log_every=1,
        )
        preset.write_text(yaml.safe_dump({"train": asdict(config)}))

    def step(self) -> int:
        """The last step in the metrics; 0 before there is one."""
        return last_step(self.run / "metrics.jsonl")

    @property
    def finished(self) -> bool:
        """Whether the trained model stands."""
        return (self.run / "model" / "model.safetensors").exists()

    def weights(self) -> bytes:
        """The trained model's weights, as they lie on disk."""
        return (self.run / "model" / "model.safetensors").read_bytes()


def last_step(metrics: Path) -> int:
    """The step of the last whole line, read from the end, as it is asked for ten times a second."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        whole = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
    return int(yaml.safe_load(whole)["step"]) if whole else 0
