"""A run of twelve people, made once, and a copy of it for each test that erases from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.album import Photograph, write_all


@pytest.fixture(scope="session")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Photograph]]:
    """The run, and its photographs."""
    root = tmp_path_factory.mktemp("twelve") / "work"
    return root, write_all(root)


@pytest.fixture
def work(twelve: tuple[Path, list[Photograph]], tmp_path: Path) -> Path:
    """A copy of the run to erase from."""
    shutil.copytree(twelve[0], tmp_path / "work")
    return tmp_path / "work"
