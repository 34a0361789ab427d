"""Small pictures of photographs and faces, as data URLs: the page carries them itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from facerec import decoding, publish, seeding, storage
from facerec.errors import StorageError
from facerec.pixels import Rejected

THUMBNAIL, QUALITY = 256, 80
"""Longer side in pixels, and of the JPEG. Noise, the worst case, is then 60 kB."""
BOX, LANDMARK = (46, 204, 64), (255, 64, 160)


@dataclass(frozen=True)
class Picture:
    """A picture, or why there is none: one of the two is empty."""

    url: str = ""
    missing: str = ""


def contacts(faces: publish.Dataset, count: int) -> list[dict[str, Any]]:
    """Faces drawn at random from all shards, the same ones each time, each with its photograph."""
    total = sum(file["rows"] for file in faces.manifest["files"] if file["kind"] == "faces")
    chosen = seeding.generator("contacts").choice(total, min(count, total), replace=False)
    return [
        {
            **row,
            "photograph": photograph(row["source_uri"], row["box"], row["landmarks"]),
            "face": picture(row["image"]["bytes"]),
        }
        for row in _rows_at(faces, "faces", chosen)
    ]


def rejects(faces: publish.Dataset, count: int) -> list[dict[str, Any]]:
    """About ``count`` rejects, as many of each level and reason as there are, and at least one."""
    columns = faces.read("rejects", ["level", "reason"]).to_pydict()
    kinds = np.array([" ".join(kind) for kind in zip(columns["level"], columns["reason"], strict=True)], str)
    names, random = np.unique(kinds), seeding.generator("rejects")
    each = -(-count // max(1, len(names)))
    chosen = [random.permutation(np.flatnonzero(kinds == name))[:each] for name in names]
    rows = _rows_at(faces, "rejects", np.concatenate([np.empty(0, np.int64), *chosen]))
    shown = [{**row, "photograph": photograph(row["source_uri"])} for row in rows]
    return sorted(shown, key=lambda row: (row["level"] == "face", row["reason"], row["source_uri"]))


def _rows_at(dataset: publish.Dataset, kind: str, positions: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """Rows at the given places of all files' rows, in their order; only the row groups that hold one are read."""
    first, positions = 0, np.sort(positions)
    for file in dataset.manifest["files"]:
        if file["kind"] == kind:
            here = positions[(positions >= first) & (positions < first + file["rows"])] - first
            if len(here):
                yield from dataset.rows(file["path"], here).to_pylist()
            first += file["rows"]


def photograph(uri: str, box: list[float] | None = None, landmarks: list[float] | None = None) -> Picture:
    """The upright photograph, reduced, with its box and landmarks drawn in."""
    try:
        if not storage.exists(uri):
            return Picture(missing="photograph not there any more")
        with decoding.opened(uri) as file:
            return picture(file, box, landmarks)
    except Rejected as rejected:
        large = rejected.reason == "too_large"
        return Picture(missing="too large to be shown" if large else "photograph cannot be read")
    except (OSError, ValueError, StorageError):  # a page of many pictures is worth having without one
        return Picture(missing="photograph cannot be read")


def picture(
    source: bytes | decoding.File,
    box: list[float] | None = None,
    landmarks: list[float] | None = None,
    longest: int = THUMBNAIL,
) -> Picture:
    """An image file as a picture that fits ``longest`` pixels; ``box`` and ``landmarks`` are in pixels of the upright image."""
    try:
        pixels, longer = decoding.decode_reduced(source, 2 * longest)
    except Rejected as rejected:
        large = rejected.reason == "too_large"
        return Picture(missing="too large to be shown" if large else "not readable as an image")
    small = Image.fromarray(pixels)
    small.thumbnail((longest, longest))
    _draw(small, max(small.size) / longer, box, landmarks)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=QUALITY)
    return Picture("data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode())


def _draw(image: Image.Image, scale: float, box: list[float] | None, landmarks: list[float] | None) -> None:
    draw = ImageDraw.Draw(image)
    if box:
        (left, right), (top, bottom) = (sorted(scale * side for side in box[axis::2]) for axis in (0, 1))
        draw.rectangle((left, top, right, bottom), outline=BOX, width=2)
    for point in np.reshape(landmarks or [], (-1, 2)) * scale:
        draw.circle(point.tolist(), 2, fill=LANDMARK)
