"""Experiments: every cell a row, failures too; a killed one goes on, a finished one is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from facerec.publish import Dataset
from tests.support.faces import write_faces
from tests.support.processes import kill_once

JOB = Path(__file__).parents[1] / "jobs" / "experiment.py"


def command(folder: Path, faces: Dataset) -> list[str]:
    settings = {
        "faces": faces.folder,
        "out": f"{folder}/out",
        "grid": {"batch.p": [4, 50], "mining.shares": [1, 2]},
        "amount": 1600,
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
    return [sys.executable, str(JOB), "--config", str(folder / "experiment.yaml")]


def test_a_killed_experiment_goes_on_and_a_cell_that_cannot_be_is_a_row_with_its_reason(
    tmp_path: Path,
) -> None:
    started = command(tmp_path, write_faces(tmp_path / "faces", 12, 8))
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
    assert "4 cells, 0 to run" in again.stdout
