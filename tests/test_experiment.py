"""Experiments: every cell a row, failures too; a killed one goes on, a finished one is left alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml

from cluster.testbed import Testbed
from facerec.errors import DatasetError, FacerecError, StorageError
from facerec.publish import Dataset
from facerec.training.config import TrainConfig
from jobs import trial
from tests.support.faces import write_faces
from tests.support.job import Restartable
from tests.support.processes import await_that, kill_once

JOB = Path(__file__).parents[1] / "jobs" / "experiment.py"


def write_settings(folder: Path, faces: Dataset, grid: dict[str, list[Any]], amount: int) -> list[str]:
    """An experiment's settings below the folder, and the arguments that name them."""
    settings = {
        "faces": faces.folder,
        "out": f"{folder}/out",
        "grid": grid,
        "amount": amount,
        "cpus": 0.5,
        "train": {
            "model": {"side": 32},
            "batch": {"k": 4, "micro_batch": 8},
            "checkpoint_every": 5,
            "log_every": 2,
            "split": {"unseen": 0.3, "validation": 0},
        },
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    return ["--config", str(folder / "experiment.yaml")]


def test_a_killed_experiment_goes_on_and_a_cell_that_cannot_be_is_a_row_with_its_reason(
    tmp_path: Path,
) -> None:
    grid = {"batch.p": [4, 50], "mining.shares": [1, 2]}
    faces = write_faces(tmp_path / "faces", 12, 8)
    started = [sys.executable, str(JOB), *write_settings(tmp_path, faces, grid, 1600)]
    kill_once(started, lambda: bool(list(tmp_path.glob("out/cells/*/run/checkpoints/step-*"))))
    subprocess.run(started, capture_output=True, timeout=300, check=True, env=os.environ)
    logs = [log.read_text() for log in tmp_path.glob("out/cells/*/log.txt")]
    assert any("going on after step" in log for log in logs)
    rows = pq.read_table(tmp_path / "out/results.parquet").to_pylist()
    assert len(rows) == 4
    for row in rows:
        if row["batch.p"] == 50:
            assert "p is 50 but" in row["error"]
        else:
            assert (row["steps"], row["faces_seen"], row["error"]) == (100, 1600, None)
            assert row["svm_interval_low"] <= row["svm"] <= row["svm_interval_high"]
    assert len({row["loss"] for row in rows if row["batch.p"] == 4}) == 2, "shares are trained on"
    page = (tmp_path / "out/experiment.html").read_text()
    assert "chart-svm" in page
    assert "2 failed" in page
    again = subprocess.run(started, capture_output=True, text=True, timeout=300, check=True, env=os.environ)
    assert "4 cells, 2 to run" in again.stdout, (
        "what kept a cell from training may have been mended: a package, a model to begin from"
    )
    others = write_faces(tmp_path / "others", 13, 8)
    mixed = [sys.executable, str(JOB), *write_settings(tmp_path, others, grid, 1600)]
    refused = subprocess.run(mixed, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
    assert (refused.returncode, "belongs to another run: faces is" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("grid", "flags", "said"),
    [
        ({"steps": [10, 20]}, [], "steps is not a cell's to choose"),
        ({"seed": [0, 1]}, ["--x", "batch.p"], "x is batch.p, but the grid has seed (--x)"),
        ({"seed": [0, 1]}, ["--train.gpu", "true"], "train.gpu is true and gpus 0"),
    ],
)
def test_settings_that_do_not_fit_an_experiment_are_one_line(
    tmp_path: Path, grid: dict[str, list[Any]], flags: list[str], said: str
) -> None:
    arguments = write_settings(tmp_path, write_faces(tmp_path / "faces", 4, 8), grid, 1600)
    started = [sys.executable, str(JOB), *arguments, *flags]
    refused = subprocess.run(started, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr


@pytest.mark.usefixtures("ray_local")
def test_a_trial_whose_process_is_lost_each_time_is_given_up_and_may_be_tried_by_a_new_command(
    tmp_path: Path,
) -> None:
    def dies(folder: str) -> None:
        trial.train = lambda _settings: os._exit(137)  # type: ignore[attr-defined]  # as the kernel ends it: nothing is said
        trial.try_cell(TrainConfig(faces=folder), "steps", 1, folder)

    lost = ray.remote(num_cpus=0.5, max_retries=-1, max_calls=1)(dies)
    with pytest.raises(FacerecError, match="lost 3 times after step 0"):
        ray.get(lost.remote(str(tmp_path)))
    assert list(tmp_path.iterdir()), "what is counted"
    trial.forget_attempts(str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("fault", "kept"), [(StorageError, False), (DatasetError, True)])
def test_what_may_be_over_by_the_next_time_is_not_a_cells_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[FacerecError], kept: bool
) -> None:
    def train(_settings: TrainConfig) -> None:
        raise fault("it did not answer")

    monkeypatch.setattr(trial, "train", train)
    with contextlib.nullcontext() if kept else pytest.raises(fault):
        assert trial.try_cell(TrainConfig(faces=str(tmp_path)), "steps", 1, str(tmp_path)) == {
            "error": "it did not answer"
        }


def test_a_node_without_the_faces_says_so_and_keeps_no_result(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not seen here"):
        trial.try_cell(TrainConfig(faces=str(tmp_path / "unmounted")), "steps", 1, str(tmp_path))


def test_the_faces_of_some_people_are_all_of_theirs_in_order(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 5, 4)
    rows = faces.read("faces", ["identity", "phash", "image"]).to_pylist()
    theirs = [row for row in rows if row["identity"] in ("person-001", "person-003")]
    names, hashes, images = trial.faces_of(faces, ["person-003", "person-001"])
    assert names.tolist() == [row["identity"] for row in theirs]
    assert hashes.tolist() == [row["phash"] for row in theirs]
    assert images == [row["image"]["bytes"] for row in theirs]


@pytest.mark.cluster
def test_an_experiment_on_two_hosts_is_killed_half_way_and_finished_by_the_same_command(shared: Path) -> None:
    grid = {"batch.p": [4, 6], "mining.shares": [1, 2], "seed": [0, 1]}
    arguments = write_settings(shared, write_faces(shared / "faces", 12, 8), grid, 4800)
    job, cells = Restartable("experiment.py", arguments, shared / "log", {}), shared / "out" / "cells"

    def finished() -> dict[Path, int]:
        return {result: result.stat().st_mtime_ns for result in cells.glob("*/result.json")}

    with Testbed(hosts=2, name="trials", shared=(shared,)) as testbed:
        driver = job.start(*testbed.inside("head"))
        await_that(lambda: len(finished()) >= 3, job.said)
        for process, said in testbed.processes("head"):
            if "experiment.py" in said:
                os.kill(process, signal.SIGKILL)
        driver.wait(timeout=10)
        before = finished()
        assert len(before) < 8, "killed too late"
        assert job.start(*testbed.inside("head")).wait(timeout=400) == 0, job.said()
    assert finished().items() >= before.items(), "a finished cell is not run again"
    rows = pq.read_table(shared / "out/results.parquet").to_pylist()
    assert [row["faces_seen"] for row in rows] == [4800] * 8
    assert "error" not in rows[0], "a column where some cell has one"
