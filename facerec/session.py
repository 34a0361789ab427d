"""Joining a Ray cluster, or starting a small one on this machine where there is none.

``ray job submit`` and RAY_ADDRESS lead to the running cluster; otherwise Ray starts here, on loopback, with a
bounded object store, and ends with the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

OBJECT_STORE_BYTES = 512 * 2**20
"""Rows in flight are small (a part is some tens of MB); Ray's default is 30 % of the machine."""


@contextlib.contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the length of a job; a session that is open already is used as it is.

    ``num_cpus`` is what a local Ray may count with; None takes the machine's cores.
    """
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
    else:
        # Ray would otherwise turn token auth on and write a token into the home folder. On loopback, for the
        # length of one process, there is nobody to keep out.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address="local",
            num_cpus=num_cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
    try:
        yield
    finally:
        ray.shutdown()
