"""A run's forecast: memory by a closed form, and nothing written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from facerec import storage
from facerec.errors import ConfigError, MismatchError
from facerec.training.config import TrainConfig
from facerec.training.forecast import LOADER_PROCESS_BYTES, forecast, kept_bytes, worker_bytes
from facerec.training.plan import make_plan
from facerec.training.validation import KEPT_BYTES, ValidationConfig
from tests.support.faces import write_faces


def test_a_graph_keeps_the_input_of_the_convolution_and_the_output_of_the_relu() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert kept_bytes(network, 16, "fp32") == 4 * 16 * 16 * (3 + 8)


def test_a_forecast_says_what_would_be_done_and_writes_nothing(tmp_path: Path) -> None:
    faces, run = str(write_faces(tmp_path / "faces", 12, 6, side=64).folder), tmp_path / "run"
    config = TrainConfig(faces=faces, run=str(run), num_workers=(1, 2))
    said = forecast(config)
    assert said["identities"] == "9 trained on, 0 validation, 3 unseen"
    assert said["batches"] == "9 x 4 faces in 2 micro-batches of 18, fp32"
    assert said["workers"] == "1 to 2, one core each"
    assert not run.exists()
    run.mkdir()
    (run / "claim.json").write_text('{"schema_version": 2, "steps": 1}')
    with pytest.raises(MismatchError, match="belongs to another run"):
        forecast(config)


def test_a_forecast_of_more_steps_is_of_the_same_run_and_of_fewer_is_refused(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 12, 6, side=64)
    config = TrainConfig(faces=str(faces.folder), run=str(tmp_path / "run"), num_workers=0)
    (tmp_path / "run").mkdir()
    storage.write_json(
        f"{config.run}/claim.json", json.loads(json.dumps(config.decisive())) | {"schema_version": 2}
    )
    assert forecast(replace(config, steps=900))["steps"] == "900 of 900, a checkpoint every 100"
    with pytest.raises(MismatchError, match="planned for 600 steps and --steps is 599"):
        forecast(replace(config, steps=599))


def test_the_validation_faces_that_are_kept_are_counted(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 12, 6, side=64)
    config = TrainConfig(faces=str(faces.folder), run=str(tmp_path / "run"), num_workers=1)
    held = [
        worker_bytes(make_plan(replace(config, validation=ValidationConfig(most=most))), workers)
        for most, workers in ((4, 1), (3000, 1), (10**6, 1))
    ]
    assert held[1] - held[0] == 2996 * 3 * config.model.side**2
    assert 3 * 10**6 * config.model.side**2 > KEPT_BYTES  # decoded anew at each score
    assert held[0] - held[2] == 4 * 3 * config.model.side**2


def test_faces_that_a_gpu_augments_are_counted_as_they_are_decoded(tmp_path: Path) -> None:
    """b = 36, m = 18 at 112 px: 4 shares and one micro-batch at 224 px, and a share of augmented faces."""
    faces = write_faces(tmp_path / "faces", 12, 6, side=64)
    config = TrainConfig(
        faces=str(faces.folder),
        run=str(tmp_path / "run"),
        num_workers=1,
        loader_processes=0,
        precision="fp32",
    )
    side = config.model.side
    on_cpu, on_gpu = (worker_bytes(make_plan(replace(config, gpu=gpu)), 1) for gpu in (False, True))
    assert on_gpu - on_cpu == (4 * 36 + 18) * 3 * (2 * 224**2 - side**2) + 36 * 3 * side**2


def test_loader_processes_are_counted_and_auto_is_for_a_gpu(tmp_path: Path) -> None:
    """b = 36, m = 18 at 64 px: two micro-batches in flight per process, and one of the thread without processes."""
    faces = write_faces(tmp_path / "faces", 12, 6, side=64)
    config = TrainConfig(faces=str(faces.folder), run=str(tmp_path / "run"), num_workers=1)
    held = [
        worker_bytes(make_plan(replace(config, loader_processes=processes)), 1) for processes in (0, 1, 3)
    ]
    micro_batch = 18 * 3 * config.model.side**2
    assert held[1] - held[0] == LOADER_PROCESS_BYTES + micro_batch
    assert held[2] - held[1] == 2 * LOADER_PROCESS_BYTES + 4 * micro_batch
    assert [replace(config, gpu=gpu).loader_process_count for gpu in (False, True)] == [0, 4]
    assert [
        replace(config, gpu=True, loader_processes=processes).loader_process_count for processes in (0, 7)
    ] == [0, 7]
    with pytest.raises(ConfigError, match=r"loader_processes is -1; choose auto, 0 .*--loader_processes"):
        replace(config, loader_processes=-1)
    assert (
        forecast(replace(config, loader_processes=3))["workers"]
        == "1, one core each, with 3 loader processes"
    )
