"""SIGKILL, the honest test of resuming: to the trainer, to a worker, and the same command again."""

from __future__ import annotations

import json
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
from facerec.training import decoder
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


@pytest.mark.parametrize(
    ("num_workers", "loader_processes"),
    [(0, 0), (0, 2), pytest.param(2, 0, marks=pytest.mark.cluster)],
)
def test_a_killed_trainer_ends_by_the_same_command_as_if_nothing_had_happened(
    num_workers: int, loader_processes: int, faces: Dataset, tmp_path: Path
) -> None:
    """Its loader processes end with it. The undisturbed run has none, and its weights are equal."""
    run = tmp_path / "run"
    config = config_of(faces, run, num_workers=num_workers, steps=STEPS, loader_processes=loader_processes)
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
        train(replace(config, run=str(tmp_path / "undisturbed"), loader_processes=0))
        assert weights(run) == weights(tmp_path / "undisturbed")


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_two_ray_workers_train_on_when_one_is_killed(faces: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(_kill_a_process, b"RayTrainWorker", run / "checkpoints" / "step-00000002")
        train(config_of(faces, run, num_workers=2, steps=STEPS))
        assert killed.result(timeout=0) > 0
    assert read_card(str(run / "model")).about["steps"] == STEPS
    assert [line["step"] for line in read_json_lines(str(run / "metrics.jsonl"))] == [
        1,
        *range(2, STEPS + 1, 2),
    ]


@pytest.mark.usefixtures("ray_local")
def test_ray_train_starts_a_worker_again_whose_loader_process_is_killed(
    faces: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = config_of(faces, run, num_workers=1, steps=STEPS, loader_processes=1)
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(
            _kill_a_process, decoder.__name__.encode(), run / "checkpoints" / "step-00000002"
        )
        train(config)
        assert killed.result(timeout=0) > 0
    fault = json.loads((run / "fault.json").read_text())
    assert fault["kind"] == "ProcessError"
    assert f"loader process {killed.result()} has ended (signal 9" in fault["said"]
    train(replace(config, run=str(tmp_path / "undisturbed"), num_workers=0, loader_processes=0))
    assert weights(run) == weights(tmp_path / "undisturbed")


def _kill_a_process(word: bytes, once: Path) -> int:
    """SIGKILL one process below this one that has the word in its command line, as soon as the first checkpoint stands.

    Returns its process id, or 0 if there is none.
    """
    while not once.exists():
        time.sleep(0.01)
    for process in descendants(os.getpid()):
        if word in Path(f"/proc/{process}/cmdline").read_bytes():
            os.kill(process, signal.SIGKILL)
            return process
    return 0
