"""DESIGN's floors: imports only point down, and stages are strangers to each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("alignment", "training", "embedding", "evaluation", "naming", "erasure", "reporting")
MODULES = sorted((ROOT / "facerec").rglob("*.py"))


def floor(module: str) -> int:
    """0 foundation, 1 models, 2 stages."""
    parts = module.split(".")
    if len(parts) < 2 or parts[1] not in (*STAGES, "models"):
        return 0
    return 1 if parts[1] == "models" else 2


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith(("facerec", "jobs", "cluster", "tests"))}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_point_down_and_stages_are_strangers(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for name in imported(path):
        assert name.startswith("facerec"), f"{module} imports {name}"
        assert floor(name) <= floor(module), f"{module} imports {name}, which is above it"
        if floor(name) == floor(module) == 2:
            assert name.split(".")[1] == module.split(".")[1], f"{module} knows another stage: {name}"
