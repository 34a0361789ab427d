"""SIGKILL of an erasure, between any two changes to the disk, and the same command again: as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from facerec import publish, storage
from facerec.erasure.pipeline import EraseConfig, erase
from tests.erasure.test_erasure import ANN, consistent, made, words

__all__ = ["made"]
pytestmark = pytest.mark.usefixtures("ray_local")


def erase_until(root: str, changes: int) -> None:
    """Erase in a process of its own, which kills itself before it changes the disk once more."""
    left = [changes]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*arguments: Any) -> Any:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return change(*arguments)

        return dying

    for verb in ("write_bytes", "replace", "remove_file", "remove_tree"):
        setattr(storage, verb, counted(getattr(storage, verb)))
    assert erase(EraseConfig(identity=ANN, root=[root])) == []


RUN = re.compile(r"(?<=generations/\d{4}-)[0-9a-f]{12}(?=/)")
"""The id of the run that wrote a generation."""


def content(root: Path) -> dict[str, Any]:
    """What readers see: all rows and manifests, by folder, and which files there are. Whatever run wrote them."""
    read: dict[str, Any] = {
        "files": sorted(RUN.sub("RUN", str(path.relative_to(root))) for path in root.rglob("*.*"))
    }
    for folder in ("faces", "embeddings", "names"):
        dataset = publish.open_dataset(str(root / folder), "")
        kinds = {entry["kind"] for entry in dataset.manifest["files"]}
        read[folder] = {kind: dataset.read(kind).to_pydict() for kind in kinds}
        said = dataset.manifest | {"writer": "RUN"}
        read[f"{folder} manifest"] = json.loads(RUN.sub("RUN", json.dumps(said)))
    return read


def said_in(root: Path) -> str:
    """Its words, whatever its place is called and whatever run wrote them."""
    found = RUN.sub("RUN", words(root).replace(str(root), ""))
    return re.sub(r'"writer": "\w+"', "", found)


def test_killed_before_every_change_it_ends_as_if_it_had_not_been(made: Any, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(made[0], undisturbed)
    assert erase(EraseConfig(identity=ANN, root=[str(undisturbed)])) == []
    wanted, said = content(undisturbed), said_in(undisturbed)
    spawn = multiprocessing.get_context("fork")
    for changes in range(1000):
        root = tmp_path / f"{changes}"
        shutil.copytree(made[0], root)
        run = spawn.Process(target=erase_until, args=(str(root), changes))
        run.start()
        run.join(120)
        if run.exitcode == 0:
            assert changes > 20
            break
        assert run.exitcode == -signal.SIGKILL
        assert erase(EraseConfig(identity=ANN, root=[str(root)])) == []
        assert content(root) == wanted, changes
        assert said_in(root) == said
        consistent(root / "faces")
        shutil.rmtree(root)
