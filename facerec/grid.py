"""Grids of settings: every combination as a cell, and a cell's settings put into a configuration."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from facerec.errors import ConfigError

C = TypeVar("C")
Cell = dict[str, Any]


def cells(grid: Mapping[str, list[Any]]) -> list[Cell]:
    """Every combination of the values, the last setting varying fastest; one empty cell for an empty grid."""
    for name, values in grid.items():
        if not values:
            raise ConfigError(f"{name} has no values in the grid; list at least one (grid)")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def cell_id(cell: Cell) -> str:
    """A short name that depends on the settings alone, not on their order."""
    return hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:12]


def with_settings(config: C, settings: Mapping[str, Any]) -> C:
    """The configuration with settings by their flags ("batch.p": 8) put in place; raises ConfigError at an unknown one.

    All at once: some are right only together.
    """
    return _with(config, {flag: (flag, value) for flag, value in settings.items()})  # type: ignore[no-any-return]


def _with(config: Any, settings: dict[str, tuple[str, Any]]) -> Any:
    """``settings`` by what is left of their flags at ``config``: the whole flag, for what is said, and the value."""
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, tuple[str, Any]]] = {}
    for rest, (flag, value) in settings.items():
        name, _, below = rest.partition(".")
        if not is_dataclass(config) or name not in {item.name for item in fields(config)}:
            raise ConfigError(f"{flag} is no setting of jobs/train.py; its --help lists them all (grid)")
        if below:
            inner.setdefault(name, {})[below] = flag, value
        else:
            changes[name] = value
    for name, below_it in inner.items():
        changes[name] = _with(changes.get(name, getattr(config, name)), below_it)
    try:
        return replace(config, **changes)
    except TypeError as error:  # a check that compares a value of another type
        named = ", ".join(f"{flag} {value!r}" for flag, value in settings.values())
        raise ConfigError(
            f"{named}: {error}; choose values as jobs/train.py --help has them (grid)"
        ) from None
