"""README's commands, one after the other, from a folder of the user's with relative names, as they stand there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from facerec.synthetic import SyntheticConfig, write_collection

ROOT = Path(__file__).parents[1]
SMALL = (
    "--model.backbone test_resnet --model.side 32 --model.dropout 0 --batch.p 8 --batch.micro_batch 8 "
    "--steps 4 --log_every 1 --split.unseen 0.3 --split.validation 0"
)
"""In place of the preset's minutes."""


def test_the_stages_run_one_after_the_other_on_relative_folders(tmp_path: Path) -> None:
    write_collection(tmp_path / "photos", SyntheticConfig(identities=14, photographs=6, side=160))
    stages = re.findall(
        r"^python (jobs/\w+\.py) +(.*--(?:source|faces) .*)$", (ROOT / "README.md").read_text(), re.M
    )
    stages = [stage for stage in stages if "pipeline" not in stage[0] and "work/" in stage[1]]
    assert [Path(job).stem for job, _ in stages] == ["align", "train", "embed", "embed", "evaluate", "report"]
    for job, flags in stages:
        arguments = flags.replace("--config ", f"--config {ROOT}/")
        command = [
            sys.executable,
            str(ROOT / job),
            *shlex.split(f"{arguments} {SMALL if 'train' in job else ''}"),
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "work" / "report.html").read_text()
    assert "chart-loss" in page, "the run's curves are found"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "work"]
