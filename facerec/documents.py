"""JSON documents that one job writes and another reads, checked before use: a damaged one is one line, not a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

import facerec
from facerec import storage
from facerec.errors import DatasetError

Shape: TypeAlias = "type | tuple[type, ...] | dict[str, Shape] | list[Shape]"
"""What a value must be: a type or one of several, an object with these keys, or a list of such values.

A key that ends in "?" may be absent. Further keys are allowed.
"""
NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", type(None): "null"}

RUN: Shape = {
    "split": {"train": [str], "validation?": [str], "unseen?": [str]},
    "faces": {"folder": str, "generation": int, "digest": str},
    "config?": dict,
    "precision?": str,
    "planned?": [{"after": int, "steps": int}],
}
"""run.json, which training writes."""


def require(uri: str, value: Any, shape: Shape, remedy: str) -> dict[str, Any]:
    """The value, an object of this shape; raises DatasetError, which names the file, the fault and the remedy."""
    if found := fault(value, shape):
        raise DatasetError(f"{uri} is damaged: {found}; {remedy}")
    checked: dict[str, Any] = value
    return checked


def fault(value: Any, shape: Shape, at: str = "") -> str:
    """What is wrong with a value, in words; empty if nothing is. ``at`` is its place in the document."""
    place = at or "the document"
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{place} is {value!r:.40}, not an object"
        return next(filter(None, (_fault_of_key(value, key, inner, at) for key, inner in shape.items())), "")
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is {value!r:.40}, not a list"
        found = (fault(each, shape[0], f"{at}[{number}]") for number, each in enumerate(value))
        return next(filter(None, found), "")
    kinds = shape if isinstance(shape, tuple) else (shape,)
    if isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds):
        return ""
    return f"{place} is {value!r:.40}, not {' or '.join(NAMES.get(kind, kind.__name__) for kind in kinds)}"


def _fault_of_key(value: dict[str, Any], key: str, shape: Shape, at: str) -> str:
    name = key.removesuffix("?")
    if name in value:
        return fault(value[name], shape, f"{at}.{name}" if at else name)
    return "" if key.endswith("?") else f"it has no {at}.{name}" if at else f"it has no {name}"


def read_run(folder: str) -> dict[str, Any] | None:
    """run.json of a run's folder; None if there is none. Raises DatasetError if it is damaged."""
    uri = storage.join(folder, "run.json")
    if not storage.exists(uri):
        return None
    remedy = "restore it from a copy, or train again into another folder (--run)"
    return require(uri, storage.read_json(uri), RUN, remedy)


def require_report(uri: str, report: dict[str, Any]) -> None:
    """Raise DatasetError unless the report is as evaluation/report.schema.json describes it."""
    import jsonschema

    schema = json.loads((Path(facerec.__file__).parent / "evaluation" / "report.schema.json").read_text())
    try:
        jsonschema.validate(report, schema)
    except jsonschema.ValidationError as error:
        said = f"{error.json_path}: {error.message}"
        raise DatasetError(
            f"{uri} is damaged ({said[:200]}); run jobs/evaluate.py again (--report)"
        ) from None
