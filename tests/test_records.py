"""Records of whom an artifact shows: every field that holds a name is known, and nothing else is touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from facerec import records
from facerec.errors import DatasetError
from facerec.evaluation import pipeline

WITHOUT_NAMES = {
    ("embeddings", "trained"),
    ("embeddings", "untrained"),
    ("versions", "*"),
    ("chosen_on", "*"),
    ("leakage", "reason"),
    ("pairs", "rule"),
    ("shows", "source_uris", "*"),
    ("svm", "sha256"),
    ("svm", "model_id"),
}
"""Text of report.json that never holds a name; so do all fields called ``refused``."""
REPORT = {
    "format": 4,
    "versions": {"people": "1", "facerec": "1"},
    "embeddings": {"trained": "people"},
    "unseen_people": ["people", "1", "Ann"],
    "run": {
        "split": {"train": ["people", "Bob"], "unseen": []},
        "config": {"precision": "people"},
        "preprocessing": {"normalization": "x / 127.5 - 1"},
    },
    "identification": {
        "trained": {
            "people": ["1", "people"],
            "confusion": [[0, 1, 2]],
            "per_identity": [{"identity": "people", "taken_for": None, "hits": 1}],
            "svm": {
                "calibration": {"refused": "2 people have one training photograph, people for one: no fold"}
            },
            "rejection": {"strangers": ["people"], "svm": {"refused": "people"}},
        }
    },
    "verification": {
        "trained": {"hardest": {"genuine": [{"faces": [{"face_id": "f", "identity": "people"}]}]}}
    },
    "leakage": {"by_name": [{"scored": "people", "seen": "People"}], "people": 1},
}


def text_fields(schema: dict[str, Any], part: dict[str, Any], path: records.Path) -> Iterator[records.Path]:
    """Where a document that the schema describes may hold text of any content."""
    if "$ref" in part:
        yield from text_fields(schema, schema["$defs"][part["$ref"].rsplit("/", 1)[-1]], path)
    for each in part.get("anyOf", []):
        yield from text_fields(schema, each, path)
    if "string" in (part.get("type"), *(part["type"] if isinstance(part.get("type"), list) else [])):
        yield path
    for name, each in part.get("properties", {}).items():
        yield from text_fields(schema, each, (*path, name))
    for key in ("items", "additionalProperties"):
        if isinstance(part.get(key), dict):
            yield from text_fields(schema, part[key], (*path, "*"))


def covers(pattern: records.Path, path: records.Path) -> bool:
    pairs = zip(pattern, path, strict=False)
    return len(pattern) == len(path) and all(step in ("*", name) for step, name in pairs)


def test_every_field_of_a_report_that_holds_a_name_or_a_face_is_known() -> None:
    schema = json.loads((files("facerec.evaluation") / "report.schema.json").read_text())
    known = (*records.REPORT_NAMES, *records.REPORT_FACES, *WITHOUT_NAMES)
    found = set(text_fields(schema, schema, ()))
    unknown = {
        path for path in found if path[-1] != "refused" and not any(covers(each, path) for each in known)
    }
    assert not unknown
    described = [path for path in (*records.REPORT_NAMES, *records.REPORT_FACES) if path[0] != "run"]
    assert not [path for path in described if not any(covers(path, each) for each in found)]
    assert schema["properties"]["format"]["const"] == pipeline.FORMAT == records.REPORT_FORMATS[-1]


def test_a_person_who_is_called_like_a_key_is_masked_and_the_keys_stay() -> None:
    masked = records.changed_report(
        REPORT, lambda name: "X" if name == "people" else name, lambda face: "Y" if face == "f" else face
    )
    wanted = json.loads(json.dumps(REPORT))
    wanted["unseen_people"][0] = wanted["run"]["split"]["train"][0] = "X"
    wanted["leakage"]["by_name"][0]["scored"] = "X"
    trained = wanted["identification"]["trained"]
    trained["people"][1] = trained["per_identity"][0]["identity"] = trained["rejection"]["strangers"][0] = "X"
    sentence = "2 people have one training photograph, X for one: no fold"
    trained["svm"]["calibration"]["refused"] = sentence
    wanted["verification"]["trained"]["hardest"]["genuine"][0]["faces"][0] = {"face_id": "Y", "identity": "X"}
    assert masked == wanted
    assert records.in_report(masked).identities == {"X", "1", "Ann", "Bob", "People"}
    assert records.in_report(REPORT) == records.Shown(
        frozenset(["people", "1", "Ann", "Bob", "People"]), frozenset("f")
    )


def test_damaged_onnx_is_refused() -> None:
    for data in (b"\xff", b"\x72\x05abc", b"\x72\x02\x0a\x05", b"\x73"):
        with pytest.raises(DatasetError, match="ONNX"):
            records.onnx_metadata(data)
    assert records.onnx_metadata(b"\x72\x08\x0a\x01k\x12\x03abc") == {"k": "abc"}
