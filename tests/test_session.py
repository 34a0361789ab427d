"""What a worker finds reaches the user."""

from __future__ import annotations

import pyarrow as pa
import pytest
import ray
import ray.data

from facerec.errors import ConfigError, StorageError
from facerec.session import one_core, ray_session


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


@pytest.mark.parametrize("resources, one", [({}, False), ({"CPU": 1.0}, True), ({"CPU": 8.0}, False)])
def test_a_cluster_that_scales_from_none_is_not_one_core(
    resources: dict[str, float], one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    assert one_core() is one
