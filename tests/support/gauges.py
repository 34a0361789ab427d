"""The gauges that cluster/README.md tells people to watch, and those that a job sets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from facerec.telemetry import Prometheus

README = Path(__file__).parents[2] / "cluster" / "README.md"


def documented(stage: str) -> set[str]:
    """Names of a stage's gauges as they stand at Ray's endpoint."""
    return set(re.findall(rf"ray_facerec_{stage}_\w+", README.read_text()))


def gauges_of(monkeypatch: pytest.MonkeyPatch, stage: str) -> set[str]:
    """Names of the gauges that this process sets from now on; grows as it sets them."""
    names: set[str] = set()
    monkeypatch.setattr(
        Prometheus,
        "write",
        lambda _, numbers: names.update(f"ray_facerec_{stage}_{name.replace('/', '_')}" for name in numbers),
    )
    return names
