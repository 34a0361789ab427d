"""A Ray cluster of several nodes on this machine, whose raylets can be killed."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.support.processes import descendants


class Nodes:
    """A head without CPUs, and ``count`` nodes of one CPU each. Its processes end with ours, or by nothing_left."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster()
        self._add(num_cpus=0, include_dashboard=True, dashboard_port=0)  # Ray Train asks it who is alive
        for _ in range(count):
            self._add(num_cpus=1)
        self.address: str = self._cluster.address

    def kill_and_replace(self, worker: int) -> bool:
        """SIGKILL the raylet that started this worker process, and add a node in its place; False if it is dead."""
        for node in self._cluster.worker_nodes:
            if worker in descendants(_raylet(node)):
                os.kill(_raylet(node), signal.SIGKILL)
                self._add(num_cpus=1)
                return True
        return False

    def _add(self, **settings: Any) -> None:
        self._cluster.add_node(wait=False, object_store_memory=100_000_000, **settings)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)
