"""Ray's own autoscaler with its fake provider: nodes are raylets on this machine that come and go as jobs need them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from cluster.testbed import ray_settings
from tests.support.processes import await_that

IDLE_MINUTES = 0.1
"""After which a node goes."""
EMPTY = [
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude"),
]
WATCH = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
while True:
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    print(f"{time.time():.1f} {len(nodes)}", flush=True)
    time.sleep(0.5)
"""


class Autoscaled:
    """A head without CPUs, and from none to ``most`` nodes of one CPU. Its processes are ours: nothing_left ends them."""

    def __init__(self, folder: Path, most: int) -> None:
        """All files of Ray are below ``folder``, a short path. Ray requires the token in this process's environment."""
        self.address = f"127.0.0.1:{_free_port()}"
        self._log, self._curve = folder / "ray.log", folder / "curve.txt"
        node = {"resources": {"CPU": 1, "object_store_memory": 100_000_000}, "node_config": {}}
        config = {
            "cluster_name": "autoscaled",
            "max_workers": most,
            "provider": {
                # By its class: Ray's packages lack the file of defaults that its name leads to.
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "head_node_id": FAKE_HEAD_NODE_ID,
                "gcs_address": self.address,
                "launch_multiple": True,
            },
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "cpu": node | {"min_workers": 0, "max_workers": most},
            },
            "head_node_type": "ray.head.default",
            "idle_timeout_minutes": IDLE_MINUTES,
            "auth": {},
            "docker": {},
            "file_mounts": {},
            **{name: [] for name in EMPTY},
        }
        (folder / "autoscaler.json").write_text(json.dumps(config))
        self.environment = {"RAY_TMPDIR": str(folder), **ray_settings()}
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"]
        command += ["--node-ip-address=127.0.0.1", f"--port={self.address.rpartition(':')[2]}"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats", "--dashboard-port=0"]
        command += [f"--autoscaling-config={folder / 'autoscaler.json'}"]
        fake = {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        self._start(command, self._log, fake)
        await_that(lambda: "Ray runtime started" in self._log.read_text(), self.said, 60)
        self._start([sys.executable, "-c", WATCH, self.address], self._curve, {})
        await_that(lambda: bool(self.curve()), self.said, 60)

    def curve(self) -> list[tuple[float, int]]:
        """(Time, nodes with a CPU), twice a second since the start."""
        lines = self._curve.read_text().splitlines()
        found = [line.split() for line in lines if len(line.split()) == 2]
        return [(float(at), int(count)) for at, count in found if count.isdecimal()]

    def nodes(self) -> int:
        """With a CPU, now."""
        return self.curve()[-1][1]

    def said(self) -> str:
        """The end of the head's log: for the message of a failure."""
        return self._log.read_text(errors="replace")[-2000:] + str(self.curve()[-20:])

    def _start(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        settings = os.environ | self.environment | environment
        with log.open("wb") as file:
            subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=settings)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
