"""A training run on S3 that is paused, replaced and woken writes nothing more: neither a checkpoint nor a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from facerec import lock, storage
from facerec.models.format import load_model
from facerec.publish import Dataset
from facerec.training import state
from facerec.training.config import TrainConfig
from facerec.training.fit import train
from tests.support.paused import LEASE, Point, paused
from tests.support.s3 import Faults, s3_server
from tests.training.test_loop import MODEL, config_of

RUN = "s3://faces/run"


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    monkeypatch.setattr(lock, "LEASE_SECONDS", LEASE)
    with s3_server(monkeypatch.setenv) as faults:
        yield faults


def train_there(config: TrainConfig) -> None:
    train(config)


@pytest.mark.parametrize(
    "point",
    [
        Point("facerec.storage", "replace", "/step-00000004/state.json"),
        Point("facerec.storage", "replace", "/model/model.safetensors"),
    ],
)
def test_a_paused_trainer_leaves_the_checkpoints_and_the_model_of_the_next_one(
    point: Point, faces: Dataset, tmp_path: Path
) -> None:
    config = replace(config_of(faces, tmp_path, steps=4), run=RUN)
    with paused(point, train_there, config) as first:
        train(config)
        before = {uri: storage.read_bytes(uri) for uri in storage.list_tree(RUN)}
        assert first.wake().startswith("BusyError")
    assert {uri: storage.read_bytes(uri) for uri in storage.list_tree(RUN)} == before
    load_model(f"{RUN}/model")
    found = state.latest(f"{RUN}/checkpoints", MODEL)
    assert found is not None
    assert found.step == 4
    lines = storage.read_bytes(f"{RUN}/metrics.jsonl").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 4]
