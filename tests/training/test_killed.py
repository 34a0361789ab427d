"""SIGKILL, the honest test of resuming: to the trainer, to a worker, and the same command again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from facerec.models.format import read_card
from facerec.publish import Dataset
from facerec.telemetry import read_json_lines
from facerec.training.config import TrainConfig
from facerec.training.fit import train
from tests.support.processes import descendants, kill_once
from tests.training.test_loop import config_of, weights

JOB = Path(__file__).parents[2] / "jobs" / "train.py"
STEPS = 40


def command_of(config: TrainConfig, preset: Path) -> list[str]:
    """The command line that gives this configuration, by a preset that is written here."""
    preset.write_text(yaml.safe_dump({"train": asdict(config)}))
    return [sys.executable, str(JOB), "--config", str(preset)]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.cluster)])
def test_a_killed_trainer_ends_by_the_same_command_as_if_nothing_had_happened(
    num_workers: int, faces: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = config_of(faces, run, num_workers=num_workers, steps=STEPS)
    command = command_of(config, tmp_path / "preset.yaml")
    kill_once(command, (run / "checkpoints" / "step-00000004").exists)
    assert not (run / "model").exists()

    again = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "train: going on after step" in again.stdout
    assert read_card(str(run / "model")).about["steps"] == STEPS
    assert [line["step"] for line in read_json_lines(str(run / "metrics.jsonl"))] == [
        1,
        *range(2, STEPS + 1, 2),
    ]
    if num_workers == 0:
        train(replace(config, run=str(tmp_path / "undisturbed")))
        assert weights(run) == weights(tmp_path / "undisturbed")


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_two_ray_workers_train_on_when_one_is_killed(faces: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(_kill_a_worker, run / "checkpoints" / "step-00000002")
        train(config_of(faces, run, num_workers=2, steps=STEPS))
        assert killed.result(timeout=0) > 0
    assert read_card(str(run / "model")).about["steps"] == STEPS
    assert [line["step"] for line in read_json_lines(str(run / "metrics.jsonl"))] == [
        1,
        *range(2, STEPS + 1, 2),
    ]


def _kill_a_worker(once: Path) -> int:
    """SIGKILL one Ray Train worker of this process as soon as the first checkpoint stands; gives its process id."""
    while not once.exists():
        time.sleep(0.01)
    for process in descendants(os.getpid()):
        if b"RayTrainWorker" in Path(f"/proc/{process}/cmdline").read_bytes():
            os.kill(process, signal.SIGKILL)
            return process
    return 0
