"""What a worker finds reaches the user."""

from __future__ import annotations

import os
import subprocess
import sys

import pyarrow as pa
import pytest
import ray
import ray.data
import ray.train

from facerec.errors import ConfigError, StorageError
from facerec.session import alone, one_core, ray_session


@pytest.mark.usefixtures("ray_local")
def test_a_fault_of_the_users_that_a_worker_finds_is_the_same_one_line() -> None:
    def refused(rows: pa.Table) -> pa.Table:
        raise StorageError(f"s3://faces/{rows.num_rows}: AccessDenied")

    with pytest.raises(StorageError, match=r"^s3://faces/1: AccessDenied$"), ray_session():
        ray.data.from_items([1]).map_batches(refused, batch_format="pyarrow").materialize()


@pytest.mark.usefixtures("ray_local")
def test_so_is_one_of_an_actors_constructor() -> None:
    class Refused:
        def __init__(self) -> None:
            raise ConfigError("openvino is not installed")

        def __call__(self, rows: pa.Table) -> pa.Table:
            return rows

    with pytest.raises(ConfigError, match=r"^openvino is not installed$"), ray_session():
        ray.data.from_items([1]).map_batches(
            Refused, compute=ray.data.ActorPoolStrategy(size=1)
        ).materialize()


@pytest.mark.usefixtures("ray_local")
def test_and_so_is_what_ray_train_says_of_its_last_attempt() -> None:
    said = "Training failed due to worker errors:\nTraceback\nfacerec.errors.StorageError: run/x cannot be written: full\n"
    with pytest.raises(StorageError, match=r"^run/x cannot be written: full$"), ray_session():
        raise ray.train.TrainingFailedError(said)
    with pytest.raises(RuntimeError, match="a bug"), ray_session():
        raise RuntimeError("a bug")


@pytest.mark.usefixtures("ray_local")
def test_a_ray_that_was_there_before_may_be_joined_by_others() -> None:
    with ray_session():
        assert not alone()


def test_a_ray_that_a_job_starts_is_its_own() -> None:
    """In a process of its own: here Ray may be open."""
    code = "from facerec.session import *\nwith ray_session(1): print(alone())\nprint(alone())"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split()[-2:] == ["True", "False"]


@pytest.mark.parametrize("resources, one", [({}, False), ({"CPU": 1.0}, True), ({"CPU": 8.0}, False)])
def test_a_cluster_that_scales_from_none_is_not_one_core(
    resources: dict[str, float], one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    assert one_core() is one
