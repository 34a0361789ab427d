"""The gauges that cluster/README.md tells people to watch."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[2] / "cluster" / "README.md"


def documented(stage: str) -> set[str]:
    """Names of a stage's gauges as they stand at Ray's endpoint."""
    return set(re.findall(rf"ray_facerec_{stage}_\w+", README.read_text()))
