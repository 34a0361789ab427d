"""Joining a Ray cluster, or starting a small one on this machine where there is none.

``ray job submit`` and RAY_ADDRESS lead to a running cluster, whose authentication is the user's to set. Without them Ray
starts here with a bounded object store and ends with the process. Nobody else can use that Ray: every port listens on
loopback only, every call needs a token that is drawn for this session and kept in the environment of its processes, and
its files are below a folder that only this user can enter (unless RAY_TMPDIR names another).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray import _raylet
from ray._private import ray_constants

from facerec import errors
from facerec.errors import FacerecError

_alone = threading.Event()

OBJECT_STORE_BYTES = 512 * 2**20
"""Rows in flight are small (a part is some tens of MB); Ray's default is 30 % of the machine."""
WORKERS = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
"""Environment of workers. DDP advises on every rank, in a long line, against the setting that keeps resumed runs exact."""
WORKERS_ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Where the workers of a local Ray exchange gradients; by default they listen on the address of the hostname."""


@contextlib.contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the duration of a job. If this process is connected to Ray already, that connection is used unchanged.

    ``num_cpus`` limits a Ray that is started here; None takes all cores of the machine.
    """
    if ray.is_initialized():
        with _faults():
            yield
        return
    # Train would log each line that a worker prints once more; the colours are noise in a file.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    with _joined() if os.environ.get("RAY_ADDRESS", "local") not in ("", "local") else _started(num_cpus):
        _quieten_data()
        with _faults():
            yield


@contextlib.contextmanager
def _joined() -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, with RAY_AUTH_MODE and the token as the user has set them."""
    try:
        ray.init(logging_level=logging.WARNING, runtime_env={"env_vars": WORKERS})
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _started(num_cpus: int | None) -> Iterator[None]:
    """A Ray of this process alone."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        said = os.environ["RAY_AUTH_MODE"]
        print(f"ray: RAY_AUTH_MODE={said} is ignored: a local Ray always requires a token", file=sys.stderr)
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    folder = os.environ.get("RAY_TMPDIR") or private_folder()
    with fresh_token(), _on_loopback(), _environment({"RAY_TMPDIR": folder}):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=True,  # Ray Train asks its state API whether the controller lives
                logging_level=logging.WARNING,
                runtime_env={"env_vars": WORKERS | WORKERS_ON_LOOPBACK},
            )
            _alone.set()
            yield
        finally:
            _alone.clear()
            ray.shutdown()


@contextlib.contextmanager
def fresh_token() -> Iterator[None]:
    """Ray in this process and in those that it starts requires a new random token. Restored when the block ends.

    A token or a mode that was set before belongs to a cluster of the user's, and is not used. Ray reads both once per
    process, so it is told to read them again. Nothing is written to the home folder.
    """
    try:
        with _environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
            _reread_authentication()
            yield
    finally:
        _reread_authentication()


def _reread_authentication() -> None:
    """The two calls by which Ray itself changes its mode and token (ray._private.authentication)."""
    raylet: Any = _raylet  # without stubs
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that is started in the block takes 127.0.0.1 as its node's address, and so binds every port to loopback.

    Ray does so by default on Windows and macOS, after which it names this switch. ``_node_ip_address`` alone does not do
    it, as Ray replaces a loopback address by the machine's. The variable is for Ray's processes; this one has read it
    when it imported Ray.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def private_folder() -> str:
    """A folder for Ray's logs, sockets and spilled rows that only this user can enter.

    Ray lets every user of the machine write to its own folders, and so exchange the sockets by which its processes meet.
    """
    folder = Path(tempfile.gettempdir(), f"ray-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return str(folder)
    return tempfile.mkdtemp(prefix=f"{folder.name}-")  # taken by somebody else, or open to others


@contextlib.contextmanager
def _environment(given: dict[str, str]) -> Iterator[None]:
    """This process's environment with these variables, and as it was when the block ends."""
    before = {name: os.environ.get(name) for name in given}
    os.environ |= given
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Raise an error that the user can fix, and that a worker found, as the same one line. Ray Data keeps only its text."""
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
    """Whether ``ray_session`` started Ray here, for this process alone: no node will join it."""
    return _alone.is_set()


def resources(kind: str) -> int:
    """Whole CPUs or GPUs of the cluster as it is now, also those at work."""
    return int(ray.cluster_resources().get(kind, 0))  # type: ignore[no-untyped-call]


def cores() -> int:
    """CPU cores of the cluster as it is now, at least 1."""
    return max(resources("CPU"), 1)


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
