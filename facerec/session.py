"""Joining a Ray cluster, or starting a small one on this machine where there is none.

``ray job submit`` and RAY_ADDRESS lead to the running cluster; otherwise Ray starts here, on loopback, with a
bounded object store, and ends with the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator

import pyarrow as pa
import ray
import ray.data

from facerec import errors
from facerec.errors import FacerecError

_alone = threading.Event()

OBJECT_STORE_BYTES = 512 * 2**20
"""Rows in flight are small (a part is some tens of MB); Ray's default is 30 % of the machine."""


@contextlib.contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the length of a job; a session that is open already is used as it is.

    ``num_cpus`` is what a local Ray may count with; None takes the machine's cores.
    """
    if ray.is_initialized():
        with _faults():
            yield
        return
    # Train would log each line that a worker prints once more; the colours are noise in a file.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    # DDP advises on every rank, in a long line, against the setting that keeps resumed runs exact.
    environment = {"env_vars": {"TORCH_CPP_LOG_LEVEL": "ERROR"}}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING, runtime_env=environment)
    else:
        # Ray would otherwise turn token auth on and write a token into the home folder. On loopback, for the
        # length of one process, there is nobody to keep out.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        ray.init(
            address="local",
            num_cpus=num_cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=True,  # on loopback; Ray Train asks its state API whether the controller lives
            logging_level=logging.WARNING,
            runtime_env=environment,
        )
        _alone.set()
    _quieten_data()
    try:
        with _faults():
            yield
    finally:
        _alone.clear()
        ray.shutdown()


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """What the user can mend, found by a worker, as the same one line. Of an error Ray Data keeps only the text."""
    try:
        yield
    except FacerecError:
        raise
    except Exception as error:  # of a task, an actor's constructor, or all attempts of Ray Train
        found = re.search(r"^facerec\.errors\.(\w+): (.+)$", str(error), re.MULTILINE)
        if not found:
            raise
        raise getattr(errors, found[1])(found[2]) from None


def alone() -> bool:
    """Whether ``ray_session`` started Ray here, for this process: nothing will join it."""
    return _alone.is_set()


def resources(kind: str) -> int:
    """Whole CPUs or GPUs of the cluster as it is now, also those at work."""
    return int(ray.cluster_resources().get(kind, 0))  # type: ignore[no-untyped-call]


def cores() -> int:
    """CPU cores of the cluster as it is now, at least 1."""
    return max(resources("CPU"), 1)


def one_core() -> bool:
    """Whether one core is all there is. A cluster that scales from none has more to come."""
    return resources("CPU") == 1


def on_whole_blocks(blocks: list[pa.Table]) -> ray.data.Dataset:
    """A dataset whose blocks are units of work (parts, shards), one each, and are never cut."""
    ray.data.DataContext.get_current().target_max_block_size = None
    return ray.data.from_arrow(blocks)


def _quieten_data() -> None:
    """Stages print their own progress; Ray Data's bars and advice would bury it in a job log."""
    context = ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []
