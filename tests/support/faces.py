"""A small published faces/ folder without a detector: people who are a colour with noise, or drawn ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from facerec import schema, synthetic
from facerec.alignment.aligner import JPEG
from facerec.alignment.geometry import straighten
from facerec.publish import Dataset
from facerec.schema import Preprocessing
from tests.support.generations import generation

ROW_GROUP = 16
"""Small, so that identities straddle row groups."""


def write_faces(
    folder: Path | str,
    identities: int,
    per_identity: int,
    seed: int = 0,
    *,
    side: int = schema.FACE_SIDE,
) -> Dataset:
    """Publish ``identities`` people of ``per_identity`` faces each, named person-000 onwards."""
    random = np.random.default_rng(seed)
    rows = [
        _row(person, number, random.integers(0, 256, 3) if number == 0 else None, random, side)
        for person in range(identities)
        for number in range(per_identity)
    ]
    colour = np.zeros(3)
    for row in rows:  # the first face of a person draws the colour that the others keep
        colour = row.pop("colour") if row["colour"] is not None else colour
        row.pop("colour", None)
        row["image"] = {"bytes": _jpeg(colour, random, side), "path": None}
    return _publish(str(folder), rows)


def write_drawn_faces(folder: Path | str, identities: int, per_identity: int, *, side: int) -> Dataset:
    """Publish drawn people, aligned by the landmarks that they were drawn with: no detector, 0.1 s per face.

    The JPEGs have the quality and the size of those that alignment writes, 13 to 16 KB at 224 px.
    """
    random = np.random.default_rng(0)
    rows = [
        _row(person, number, None, random, side)
        for person in range(identities)
        for number in range(per_identity)
    ]
    for row in rows:
        person, number = (int(row["face_id"][at : at + 16], 16) for at in (0, 16))
        face = straighten(synthetic.render(person, number), synthetic.landmarks(person, number), side)
        row.pop("colour")
        bgr = cv2.cvtColor(face, cv2.COLOR_RGB2BGR)
        row["image"] = {"bytes": cv2.imencode(".jpg", bgr, JPEG)[1].tobytes(), "path": None}
    return _publish(str(folder), rows)


def _row(person: int, number: int, colour: Any, random: np.random.Generator, side: int) -> dict[str, Any]:
    return {
        "face_id": f"{person:016x}{number:016x}",
        "identity": f"person-{person:03d}",
        "image": None,
        "source_uri": f"/memory/person-{person:03d}/{number}.jpg",
        "box": [0.0, 0.0, float(side), float(side)],
        "landmarks": [float(side) / 2] * 10,
        "confidence": 0.99,
        "blur": 100.0,
        "phash": int(random.integers(0, 2**62)),
        "colour": colour,
    }


def _jpeg(colour: Any, random: np.random.Generator, side: int) -> bytes:
    coarse = np.clip(colour + random.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
    return _encoded(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR))


def _encoded(image: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _publish(folder: str, rows: list[dict[str, Any]]) -> Dataset:
    faces, spans = "faces-00000.parquet", _spans("faces-00000.parquet", rows)
    sizes = [min(ROW_GROUP, len(rows) - at) for at in range(0, len(rows), ROW_GROUP)]
    people = len({row["identity"] for row in rows})
    about = {
        "preprocessing": Preprocessing().to_json(),
        "counts": {"faces": len(rows), "identities": people},
    }
    with generation(folder) as made:
        files = [
            made.write(faces, "faces", pa.Table.from_pylist(rows, schema.FACES), row_groups=sizes),
            made.write("index.parquet", "index", pa.Table.from_pylist(spans, schema.INDEX)),
            made.write("rejects.parquet", "rejects", schema.REJECTS.empty_table()),
        ]
        return made.publish(files, about)


def _spans(path: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spans: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        group, at = divmod(number, ROW_GROUP)
        if spans and spans[-1]["identity"] == row["identity"] and spans[-1]["row_group"] == group:
            spans[-1]["rows"] += 1
        else:
            spans.append(
                {"identity": row["identity"], "file": path, "row_group": group, "first_row": at, "rows": 1}
            )
    return spans
