"""Small pictures of photographs and faces, as data URLs: the page carries them itself."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from facerec import publish, seeding, storage
from facerec.photographs import FORMATS

THUMBNAIL, QUALITY = 256, 80
"""Longer side in pixels, and of the JPEG. Noise, the worst case, is then 60 kB."""
MAX_FILE_BYTES, MAX_PIXELS = 256 * 2**20, 80_000_000
"""A larger photograph is not opened for the sake of its picture."""
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
                yield from storage.read_rows(storage.join(dataset.folder, file["path"]), here).to_pylist()
            first += file["rows"]


def photograph(uri: str, box: list[float] | None = None, landmarks: list[float] | None = None) -> Picture:
    """The upright photograph, reduced, with its box and landmarks drawn in."""
    try:
        with storage.open_input(uri) as file:
            if file.size() > MAX_FILE_BYTES:
                return Picture(missing="too large to be shown")
            data = bytes(file.read())
    except FileNotFoundError:
        return Picture(missing="photograph not there any more")
    except OSError:
        return Picture(missing="photograph cannot be read")
    return picture(data, box, landmarks)


def picture(
    data: bytes,
    box: list[float] | None = None,
    landmarks: list[float] | None = None,
    longest: int = THUMBNAIL,
) -> Picture:
    """An image file as a picture that fits ``longest`` pixels; ``box`` and ``landmarks`` are in pixels of the upright image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to doubt the pixels
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                longer = max(image.size)
                if image.width * image.height > MAX_PIXELS:
                    return Picture(missing="too large to be shown")
                small = _reduced(image, longest)
    except (Image.DecompressionBombError, MemoryError):
        return Picture(missing="too large to be shown")
    except Exception:  # noqa: BLE001  # Pillow's decoders raise anything on damaged bytes; all mean the same
        return Picture(missing="not readable as an image")
    _draw(small, max(small.size) / longer, box, landmarks)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=QUALITY)
    return Picture("data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode())


def _reduced(image: Image.Image, longest: int) -> Image.Image:
    """Upright RGB that fits ``longest``; transparency lies over white, and a JPEG is decoded small."""
    image.draft(None, (2 * longest, 2 * longest))
    upright = ImageOps.exif_transpose(image)
    small = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    small.thumbnail((longest, longest))
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
    return small.convert("RGB")


def _draw(image: Image.Image, scale: float, box: list[float] | None, landmarks: list[float] | None) -> None:
    draw = ImageDraw.Draw(image)
    if box:
        (left, right), (top, bottom) = (sorted(scale * side for side in box[axis::2]) for axis in (0, 1))
        draw.rectangle((left, top, right, bottom), outline=BOX, width=2)
    for point in np.reshape(landmarks or [], (-1, 2)) * scale:
        draw.circle(point.tolist(), 2, fill=LANDMARK)
