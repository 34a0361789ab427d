"""From a file's bytes to upright RGB pixels, whatever the colour mode, or to a reason why not."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_PIXELS = 80_000_000
"""An 80-megapixel photograph decodes to 240 MB; the size is read from the header, before anything is decoded."""
MIN_SIDE = 12
"""P-Net's smallest window: nothing smaller can hold a face."""


class Rejected(Exception):  # noqa: N818  # an outcome that is counted, not an error
    """This photograph (or face) is not used; ``reason`` is one of schema.REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def decode(data: bytes) -> NDArray[np.uint8]:
    """Upright RGB uint8 [h, w, 3]; EXIF orientation is applied, alpha lies over white. Raises Rejected."""
    if not data:
        raise Rejected("unreadable", "empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to doubt the pixels
            with Image.open(io.BytesIO(data)) as image:
                _check_size(image)
                return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except Rejected:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise Rejected("too_large", str(error)) from None
    except Exception as error:  # noqa: BLE001  # Pillow's decoders raise anything on damaged bytes; all mean the same
        raise Rejected("unreadable", f"{type(error).__name__}: {error}") from None


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Rejected("too_large", f"{width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")
    if min(width, height) < MIN_SIDE:
        raise Rejected("too_small", f"{width} x {height} pixels; at least {MIN_SIDE} a side are needed")


def _to_rgb(image: Image.Image) -> Image.Image:
    if (
        image.mode.startswith("I") or image.mode == "F"
    ):  # 16-bit grey and floats: scale to the range that is used
        values = np.asarray(image).astype(np.float64)
        top = 65535.0 if values.max() > 255 else 255.0
        return Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
