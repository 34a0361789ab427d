"""Faces that several files of tests train on."""

from __future__ import annotations

import pytest

from facerec.publish import Dataset
from tests.support.faces import write_faces


@pytest.fixture(scope="package")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve people of five faces; read only."""
    return write_faces(tmp_path_factory.mktemp("faces"), 12, 5, side=64)


@pytest.fixture(scope="package")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Seventy people of five faces: enough to keep six for validation."""
    return write_faces(tmp_path_factory.mktemp("crowd"), 70, 5, side=64)
