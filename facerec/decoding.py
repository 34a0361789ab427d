"""From a file to upright RGB pixels, whatever its format and colour mode, or to a reason for rejecting it.

An actor stays below 1.5 GiB of memory whatever the file: what a file would cost is told from its header before
anything is decoded, and Pillow's pixels become the result strip by strip, so no third copy of them is held.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import stat
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from facerec import s3, storage
from facerec.photographs import FORMATS

MAX_FILE_BYTES = 256 * 2**20
"""A larger file is refused unread: no photograph is."""
HELD_BYTES = 8 * 2**20
"""A larger file is read again while it is decoded, not held, by pieces of ``BUFFER`` bytes."""
BUFFER = 2 * 2**20
MAX_COST = 435_000_000
"""Bytes that decoding may take: what Ray, torch's CUDA build and OpenVINO (1,090 MiB) leave of 1.5 GiB. It is 61
megapixels of JPEG or PNG, 42 of progressive JPEG, 24 of WebP or AVIF."""
LARGE_COST = 64_000_000
"""Before so dear a photograph, memory that is free is given back."""
FRAMES = 18
"""Bytes a pixel of WebP and AVIF at the most: planes of 16 bits, or two frames of a film and alpha, and copies."""
MAX_SLOW_PIXELS = 4_000_000
"""Of RLE in BMP, and of PNM as text or of 16 bits: Pillow decodes them in Python, at some 2 megapixels a second."""
MAX_SCANNED = 5_000_000_000
"""Scans of a progressive JPEG times its pixels: 14 bytes can make it pass over all of them once more, at 0.7 ns each.
A photograph has about 10."""
MIN_SIDE = 12
"""P-Net's smallest window: nothing smaller can hold a face."""
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # as many as there are cores otherwise; an actor has one
File = io.BytesIO | io.BufferedReader
STRIP = 2**18
"""Pixels that are converted at once."""


class Rejected(Exception):  # noqa: N818  # an outcome that is counted, not an error
    """This photograph (or face) is not used; ``reason`` is one of schema.REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@contextlib.contextmanager
def opened(uri: str) -> Iterator[File]:
    """A photograph's bytes, as a file at its beginning. Raises Rejected."""
    try:
        if not storage.is_s3(uri) and not stat.S_ISREG(os.stat(uri).st_mode):
            raise Rejected("unreadable", "a folder, pipe or device where a file is needed")
        with s3.refusals(uri), storage.open_input(uri) as file:
            if file.size() > MAX_FILE_BYTES:
                raise Rejected("too_large", f"{file.size():,} bytes; at most {MAX_FILE_BYTES:,} are read")
            held = file.size() <= HELD_BYTES
            yield io.BytesIO(file.read()) if held else io.BufferedReader(file, BUFFER)
    except (OSError, ValueError) as error:
        hint = "; \\x stands for a byte that is no UTF-8: rename the file" if "\\x" in uri else ""
        raise Rejected("unreadable", f"{type(error).__name__}: {error}{hint}") from None


def decode(source: bytes | File) -> NDArray[np.uint8]:
    """Upright RGB uint8 [h, w, 3]; EXIF orientation is applied, alpha lies over white. Raises Rejected."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to doubt the pixels
            with Image.open(file, formats=FORMATS) as image:
                _check_cost(image, file)
                image.load()
                return _upright(image)
    except Rejected:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise Rejected("too_large", str(error)) from None
    except UnidentifiedImageError:
        raise Rejected("unreadable", _unknown(file)) from None
    except Exception as error:  # noqa: BLE001  # Pillow's decoders raise anything on damaged bytes; all mean the same
        raise Rejected("unreadable", f"{type(error).__name__}: {error}") from None


def _unknown(file: File) -> str:
    file.seek(0)
    begin = file.read(16)
    if not begin:
        return "empty file"
    if begin[4:8] == b"ftyp":
        return f"an ISO media file of brand {begin[8:12]!r}, as HEIC is: no decoder here; convert it to JPEG"
    return f"none of {', '.join(FORMATS)}: begins with {begin!r}"


def _check_cost(image: ImageFile, file: File) -> None:
    width, height = image.size
    what, pixels = f"{width} x {height} pixels of {image.format}", width * height
    if min(width, height) < MIN_SIDE:
        raise Rejected("too_small", f"{what}; at least {MIN_SIDE} a side are needed")
    cost = _cost(image, file)
    if cost > MAX_COST:
        raise Rejected(
            "too_large", f"{what} may take {cost:,} bytes to decode; at most {MAX_COST:,} are spent"
        )
    if pixels > MAX_SLOW_PIXELS and any(tile[0] in Image.DECODERS for tile in image.tile):
        raise Rejected(
            "too_large", f"{what}; at most {MAX_SLOW_PIXELS:,} of this slow kind: convert it to PNG"
        )
    if "progressive" in image.info and (scans := _scans(file)) * pixels > MAX_SCANNED:
        raise Rejected("too_large", f"{what} in {scans} scans; at most {MAX_SCANNED // pixels} are decoded")
    if cost > LARGE_COST:
        _return_memory()


def _cost(image: ImageFile, file: File) -> int:
    """Bytes that decoding takes at most: Pillow's pixels and ours, or, of some formats, more before ours are there."""
    pixels, size = image.width * image.height, file.seek(0, io.SEEK_END)
    deep = 4 + 2 * max(2, len(image.getbands()))
    if image.format in ("WEBP", "AVIF"):
        return pixels * FRAMES + size
    if any(tile[0] == "libtiff" for tile in image.tile):  # one strip may hold all, in 16 bits a sample
        return pixels * deep + size
    return pixels * (deep if "progressive" in image.info else 7) + min(size, HELD_BYTES)


def _return_memory() -> None:
    """Give freed blocks back to the system: glibc keeps those of up to 32 MB below anything small that came later.

    So Pillow's are made larger than its 16 MB, and the rest is trimmed here. An actor that had seen 30 large photographs
    held 290 MB for nothing. (Lower thresholds of glibc would do it alone, but double the time of torch's detector.)
    """
    Image.core.set_block_size(2**26)  # type: ignore[attr-defined]
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _scans(file: File) -> int:
    file.seek(0)
    return file.read().count(b"\xff\xda")


def _upright(image: Image.Image) -> NDArray[np.uint8]:
    orientation, (width, height) = _orientation(image), image.size
    upright = np.empty((width, height, 3) if orientation > 4 else (height, width, 3), np.uint8)
    stored = upright.transpose(1, 0, 2) if orientation > 4 else upright
    stored = stored[:: -1 if orientation in (3, 4, 6, 7) else 1, :: -1 if orientation in (2, 3, 7, 8) else 1]
    top = (
        max(float(np.nanmax(np.asarray(strip))) for _, strip in _strips(image))
        if image.mode[0] in "IF"
        else 0.0
    )
    top = next((limit for limit in (1.0, 255.0, 65535.0) if top <= limit), top)
    for y, strip in _strips(image):
        stored[y : y + strip.height] = _rgb(strip, top)
    return upright


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 where the metadata is damaged."""
    try:
        value: Any = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  # as Pillow's decoders
        return 1
    return value if value in range(1, 9) else 1


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in pieces of some rows, and where each begins."""
    rows = max(1, STRIP // image.width)
    for y in range(0, image.height, rows):
        yield y, image.crop((0, y, image.width, min(y + rows, image.height)))


def _rgb(strip: Image.Image, top: float) -> NDArray[np.uint8]:
    """uint8 [h, w, 3], or [h, w, 1] for 16-bit grey and floats, whose range 0 to ``top`` is scaled to 8 bits."""
    if strip.mode[0] in "IF":
        grey = np.nan_to_num(np.asarray(strip, np.float32)) / top * 255
        return grey.clip(0, 255).astype(np.uint8)[:, :, None]
    if strip.has_transparency_data:
        white = Image.new("RGBA", strip.size, "white")
        strip = Image.alpha_composite(white, strip.convert("RGBA"))
    return np.asarray(strip.convert("RGB"))
