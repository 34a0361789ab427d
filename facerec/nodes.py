"""The machines of a cluster: whether they see the files that they will work on, and how long they were held."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from facerec import storage
from facerec.errors import StorageError

ANSWER_S = 60.0
"""Longest wait for what a node sees: its first task starts a process, which loads our code."""
SAMPLE_S = 2.0
"""Seconds between two counts of the nodes."""

Node = dict[str, Any]


def working() -> list[Node]:
    """The nodes that are alive and can work: a head without cores is none. As ``ray.nodes`` describes them."""
    nodes: list[Node] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"] and node["Resources"].keys() & {"CPU", "GPU"}]


def require_shared(folder: str, *inputs: str) -> None:
    """Raise StorageError, naming the node, where one does not see ``folder``, which is ours to write, or an input.

    Asks the nodes that there are now, where there are several. s3:// is seen by all.
    """
    nodes = working()
    if len(nodes) < 2:
        return
    with _probe(folder) as probe:
        standing_for = {probe: folder} | {path: path for path in inputs}
        paths = [path for path in standing_for if not storage.is_s3(path)]
        for node, path in _unseen(nodes, paths):
            raise StorageError(
                f"{standing_for[path]} is not seen by node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}); "
                "mount it on all nodes at the same path, or keep it in s3://"
            )


@contextlib.contextmanager
def _probe(folder: str) -> Iterator[str]:
    """A file below the folder for the length of the block: another node's folder of the same name does not have it."""
    if storage.is_s3(folder):
        yield folder
        return
    probe = storage.join(folder, f".probe-{uuid.uuid4().hex}")
    storage.write_bytes(probe, b"")
    try:
        yield probe
    finally:
        storage.remove_file(probe)


def _unseen(nodes: list[Node], paths: list[str]) -> list[tuple[Node, str]]:
    """(node, path) for each path that a node does not see; a node that is lost meanwhile, or full, says nothing."""
    asked = [(node, _blind_to.options(scheduling_strategy=_on(node)).remote(paths)) for node in nodes]
    unseen = []
    for node, answer in asked:
        with contextlib.suppress(RayError):
            unseen += [(node, path) for path in ray.get(answer, timeout=ANSWER_S)]
    return unseen


def _on(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


@ray.remote(num_cpus=0, max_retries=0)
def _blind_to(paths: list[str]) -> list[str]:
    """Those that are not there for the node where this runs."""
    return [path for path in paths if not os.path.exists(path)]


class NodeSeconds:
    """What a job cost: the nodes that can work, times the seconds they were held while the block ran, idle or not.

    Without Ray it is this one machine.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        """Node-seconds so far."""
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> NodeSeconds:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()

    def of(self, images: int, what: str) -> str:
        """In words, for so many ``what``: "1200 photographs in 340 node-seconds, 3.5 a node-second"."""
        return f"{images} {what} in {self.spent:.0f} node-seconds, {images / max(self.spent, 1e-9):.1f} a node-second"

    def _sample(self) -> None:
        then, ended = time.monotonic(), False
        while not ended:
            ended = self._ended.wait(SAMPLE_S)
            now = time.monotonic()
            self.spent += (now - then) * _count()
            then = now


def _count() -> int:
    return len(working()) if ray.is_initialized() else 1
