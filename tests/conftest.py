"""Fixtures that several folders of tests share. Ray is started once, small, and requires a token of this test run."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.testbed import missing

# Before anything imports Ray, which reads them once.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of two CPUs on this machine, with a bounded object store."""
    import ray

    ray.init(
        "local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def photographs_of_people() -> Path:
    """The folder of real photographs; tests that need it skip without it, and say so."""
    folder = os.environ.get("FACEREC_DATA")
    if not folder:
        pytest.skip("FACEREC_DATA names no folder of real photographs")
    return Path(folder)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder below /tmp itself, which every host of a testbed can be shown; skips where there can be no testbed."""
    if lacking := missing():
        pytest.skip(lacking)
    folder = Path(tempfile.mkdtemp(prefix="hosts-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
