"""SIGKILL of an alignment, and the same command again: the faces of an undisturbed run, and no part twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from facerec import publish
from facerec.alignment.config import AlignConfig
from facerec.alignment.pipeline import align_source
from facerec.synthetic import SyntheticConfig, write_collection
from tests.support.processes import kill_once

JOB = Path(__file__).parents[2] / "jobs" / "align.py"


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_a_killed_alignment_ends_by_the_same_command_as_if_nothing_had_happened(tmp_path: Path) -> None:
    write_collection(tmp_path / "photographs", SyntheticConfig(identities=6, photographs=20))
    out, parts = tmp_path / "faces", tmp_path / "faces" / "parts"
    command = [sys.executable, str(JOB), "--source", str(tmp_path / "photographs"), "--out", str(out)]
    command += ["--part", "2"]
    kill_once(command, lambda: len(list(parts.glob("*.parquet"))) >= 2)
    finished = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert 2 <= len(finished) < 60
    assert not (out / "manifest.json").exists()

    again = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"{120 - 2 * len(finished)} to align" in again.stdout
    assert (
        finished.items() <= {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}.items()
    )
    config = AlignConfig(source=str(tmp_path / "photographs"), out=str(tmp_path / "undisturbed"), part=7)
    undisturbed, disturbed = align_source(config), publish.open_dataset(str(out), "jobs/align.py")
    assert disturbed.digest == undisturbed.digest
