"""The nodes of a cluster: who does not see a folder is named, and what they cost is counted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cluster.testbed import Testbed
from facerec import nodes
from facerec.errors import StorageError
from facerec.nodes import NodeSeconds, require_shared
from facerec.synthetic import SyntheticConfig, write_collection
from tests.support.job import Restartable

TWO = [
    {"NodeID": str(number), "NodeManagerHostname": f"h{number}", "NodeManagerAddress": f"10.0.0.{number}"}
    for number in (1, 2)
]


def test_a_folder_of_the_same_name_that_is_another_is_refused_with_the_nodes_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def second_has_its_own(found: list[Any], paths: list[str]) -> list[Any]:
        asked.extend(path for path in paths if Path(path).exists())
        return [(found[1], path) for path in paths if path != str(tmp_path)]

    monkeypatch.setattr(nodes, "working", lambda: TWO)
    monkeypatch.setattr(nodes, "_unseen", second_has_its_own)
    with pytest.raises(StorageError, match=rf"^{tmp_path} is not seen by node h2 \(10\.0\.0\.2\)"):
        require_shared(str(tmp_path))
    assert len(asked) == 1, "no file was there to look for"
    assert not list(tmp_path.iterdir()), "the probe was left behind"


def test_what_lies_in_s3_is_asked_of_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "working", lambda: TWO)
    monkeypatch.setattr(nodes, "_unseen", lambda _, paths: [(TWO[0], path) for path in paths])
    require_shared("s3://bucket/faces", "s3://bucket/photographs")


@pytest.mark.usefixtures("ray_local")
def test_a_node_says_which_paths_it_does_not_see(tmp_path: Path) -> None:
    (node,) = nodes.working()
    missing = str(tmp_path / "missing")
    assert nodes._unseen([node], [str(tmp_path), missing]) == [(node, missing)]


def test_two_nodes_held_for_a_second_are_two_node_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_count", lambda: 2)
    with NodeSeconds() as held:
        time.sleep(0.5)
    assert held.spent == pytest.approx(1.0, abs=0.3)
    held.spent = 4.0
    assert held.of(10, "photographs") == "10 photographs in 4 node-seconds, 2.5 a node-second"


@pytest.mark.cluster
def test_a_folder_that_only_the_driver_has_is_refused_with_the_hosts_name(shared: Path) -> None:
    write_collection(shared / "drawn", SyntheticConfig(identities=2, photographs=2))
    arguments = ["--source", str(shared / "drawn"), "--out", "/tmp/of-this-host/faces"]
    job = Restartable("align.py", arguments, shared / "log", {})
    with Testbed(hosts=2, name="blind", shared=(shared,)) as testbed:
        assert job.start(*testbed.inside("head")).wait(timeout=240) == 2, job.said()
        assert "align: error: /tmp/of-this-host/faces is not seen by node h" in job.said()
