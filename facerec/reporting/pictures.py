"""Small pictures of photographs and faces, as data URLs: the page carries them itself."""

from __future__ import annotations

import base64
import io
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from facerec import storage

THUMBNAIL = 160


def contact(row: dict[str, Any]) -> dict[str, Any]:
    """A faces row as what the page shows: photograph with its box, aligned face, who it is."""
    return {
        "identity": row["identity"],
        "source": row["source_uri"],
        "confidence": row["confidence"],
        "photograph": photograph(row["source_uri"], row["box"]),
        "face": data_url(np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))),
    }


def photograph(uri: str, box: list[float] | None = None) -> str | None:
    """A thumbnail of the upright photograph with its box drawn in; None where it cannot be read any more."""
    try:
        with Image.open(io.BytesIO(storage.read_bytes(uri))) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, pa.ArrowException, Image.DecompressionBombError):
        return None
    if box:
        line = max(2, round(max(image.size) / 120))
        ImageDraw.Draw(image).rectangle(_ordered(box), outline=(46, 204, 64), width=line)
    return data_url(np.asarray(image))


def data_url(image: NDArray[np.uint8]) -> str:
    """RGB uint8 [h, w, 3], shrunk to fit THUMBNAIL pixels, as a JPEG data URL."""
    scale = min(1.0, THUMBNAIL / max(image.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])  # a 12 x 6000 strip keeps a row
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) if scale < 1 else image
    encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def _ordered(box: list[float]) -> list[float]:
    return [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
