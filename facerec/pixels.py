"""From an image file to upright RGB pixels, whatever its format and colour mode, or to a reason for rejecting it.

Run as a program, this file is the process in which photographs are decoded (see decoding.py): it reads requests from
its standard input and answers on its standard output. It imports nothing of facerec, so it starts in 0.2 s.

Memory is bounded: the cost of a file is computed from its header before anything is decoded, and pixels leave in
strips, so that they are never held twice.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import resource
import signal
import sys
import warnings
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "PPM")
"""What is opened. Pillow's others are no photographs, and one of them runs a program on the file (EPS)."""
HELD_BYTES = 8 * 2**20
"""A larger file is read again while it is decoded, not held, in pieces of ``BUFFER`` bytes."""
BUFFER = 2 * 2**20
MAX_COST = 435_000_000
"""Bytes that decoding may take: what Ray, torch's CUDA build and OpenVINO (1,090 MiB) leave of 1.5 GiB. It is 61
megapixels of JPEG or PNG, 42 of JPEG in several scans, 24 of WebP or AVIF."""
SPARE = 128 * 2**20
"""Bytes that decoding may take beyond what its cost says before the operating system refuses them."""
LARGE_COST = 64_000_000
"""Before a photograph of this cost, free memory is given back to the system."""
FRAMES = 18
"""Bytes a pixel of WebP and AVIF at the most: planes of 16 bits, or two frames of a film and alpha, and copies."""
MAX_SLOW_PIXELS = 4_000_000
"""Pixel limit for BMP with RLE and for PNM as text or with 16 bits: Pillow decodes them in Python, at 2 megapixels/s."""
MAX_SCANNED = 5_000_000_000
"""Scans of a JPEG times its pixels: 10 bytes can make the decoder pass over all pixels once more, at up to 0.7 ns each.
A photograph has about 10 scans."""
MARKER = re.compile(rb"\xff+[\x02-\xbf\xc0-\xcf\xd9-\xfe]")
"""A marker of JPEG that has a segment, or EOI: within scans, FF 00 is a stuffed byte, and RST0 to RST7 stand alone."""
MIN_SIDE = 12
"""P-Net's smallest window: nothing smaller can hold a face."""
STRIP = 2**18
"""Pixels that are converted at once."""
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # as many as there are cores otherwise; an actor has one


class Rejected(Exception):  # noqa: N818  # an outcome that is counted, not an error
    """This photograph (or face) is not used; ``reason`` is one of schema.REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Header:
    """What is known of a photograph once it is decoded, before its pixels come."""

    width: int
    """Of the stored image, which may be a reduced one."""
    height: int
    orientation: int
    """EXIF's, 1 to 8: how the stored image becomes upright."""
    longest: int
    """Longer side of the file's image in pixels, before any reduction."""

    def empty(self) -> NDArray[np.uint8]:
        """An upright RGB image without pixels, [h, w, 3]."""
        turned = self.orientation > 4
        return np.empty((self.width, self.height, 3) if turned else (self.height, self.width, 3), np.uint8)

    def stored(self, upright: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A view of ``upright`` whose rows are those of the stored image."""
        view = upright.transpose(1, 0, 2) if self.orientation > 4 else upright
        down = -1 if self.orientation in (3, 4, 6, 7) else 1
        right = -1 if self.orientation in (2, 3, 7, 8) else 1
        return view[::down, ::right]


def strips(file: BinaryIO, longest: int | None = None) -> Iterator[Header | NDArray[np.uint8]]:
    """A photograph's header, then its RGB pixels as strips of whole rows [rows, w, 3], from top to bottom.

    Alpha lies over white. A JPEG is decoded at a reduced size, if one of at least ``longest`` pixels is enough.
    Raises Rejected.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to doubt the pixels
            with Image.open(file, formats=FORMATS) as image:
                large = yield from _strips(image, file, longest)
        if large:
            return_memory()
    except Rejected:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise Rejected("too_large", str(error) or "more memory than decoding may take") from None
    except UnidentifiedImageError:
        raise Rejected("unreadable", _unknown(file)) from None
    except Exception as error:  # noqa: BLE001  # Pillow's decoders raise anything on damaged bytes; all mean the same
        raise Rejected("unreadable", f"{type(error).__name__}: {error}") from None


def _strips(
    image: ImageFile, file: BinaryIO, longest: int | None
) -> Generator[Header | NDArray[np.uint8], None, bool]:
    """Header and strips; returns whether much memory was held."""
    if not longest and min(image.size) < MIN_SIDE:  # to look at, any size will do
        raise Rejected("too_small", f"{_what(image)}; at least {MIN_SIDE} a side are needed")
    whole, what = max(image.size), _what(image)
    held = _coefficients(image, file)
    if longest:
        image.draft(None, (longest, longest))
    large = _check_cost(image, file, what, held)
    image.load()
    yield Header(image.width, image.height, _orientation(image), whole)
    top = 0.0
    if image.mode[0] in "IF":
        top = max(float(np.nanmax(np.asarray(piece))) for piece in _rows(image))
        top = next((limit for limit in (1.0, 255.0, 65535.0) if top <= limit), top)
    for piece in _rows(image):
        yield np.ascontiguousarray(np.broadcast_to(_rgb(piece, top), (piece.height, piece.width, 3)))
    return large


def _unknown(file: BinaryIO) -> str:
    file.seek(0)
    begin = file.read(16)
    if not begin:
        return "empty file"
    if begin[4:8] == b"ftyp":
        return f"an ISO media file of brand {begin[8:12]!r}, as HEIC is: no decoder here; convert it to JPEG"
    return f"none of {', '.join(FORMATS)}: begins with {begin!r}"


def _coefficients(image: ImageFile, file: BinaryIO) -> int:
    """Bytes of coefficients that are held while a JPEG in several scans is decoded; 0 for other images.

    Raises Rejected if passing over all pixels in each scan takes too long.
    """
    if image.format not in ("JPEG", "MPO"):
        return 0
    pixels = image.width * image.height
    file.seek(0)
    scans = count_scans(file.read())
    if scans * pixels > MAX_SCANNED:
        most = MAX_SCANNED // pixels
        raise Rejected("too_large", f"{_what(image)} in {scans:,} scans; at most {most:,} are decoded")
    return 2 * pixels * max(2, len(image.getbands())) if scans > 1 else 0


def count_scans(data: bytes) -> int:
    """Scans of the first image in a JPEG file: the SOS markers between its SOI and its EOI.

    Markers within segments, as those of an EXIF thumbnail, do not count, nor do further images after the EOI.
    """
    at, scans = 2, 0
    while found := MARKER.search(data, at):
        at, marker = found.end(), found[0][-1]
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _check_cost(image: ImageFile, file: BinaryIO, what: str, held: int) -> bool:
    """Raise Rejected if decoding takes too much memory or time; returns whether it takes much memory."""
    pixels = image.width * image.height
    cost = _cost(image, file, held)
    if cost > MAX_COST:
        raise Rejected(
            "too_large", f"{what} may take {cost:,} bytes to decode; at most {MAX_COST:,} are spent"
        )
    if pixels > MAX_SLOW_PIXELS and any(tile[0] in Image.DECODERS for tile in image.tile):
        raise Rejected(
            "too_large", f"{what}; at most {MAX_SLOW_PIXELS:,} of this slow kind: convert it to PNG"
        )
    if cost > LARGE_COST:
        return_memory()
    return cost > LARGE_COST


def _what(image: ImageFile) -> str:
    return f"{image.width} x {image.height} pixels of {image.format}"


def _cost(image: ImageFile, file: BinaryIO, held: int) -> int:
    """Bytes that decoding takes at most: Pillow's pixels and ours, or more before ours are there, as coefficients."""
    pixels, size = image.width * image.height, file.seek(0, io.SEEK_END)
    if image.format in ("WEBP", "AVIF"):
        return pixels * FRAMES + size
    if any(tile[0] == "libtiff" for tile in image.tile):  # one strip may hold all, in 16 bits a sample
        return pixels * (4 + 2 * max(2, len(image.getbands()))) + size
    return max(pixels * 7, pixels * 4 + held) + min(size, HELD_BYTES)


def return_memory() -> None:
    """Give freed blocks back to the system: glibc keeps those of up to 32 MB below anything small that came later.

    So Pillow's are made larger than its 16 MB, and the rest is trimmed here. An actor that had seen 30 large photographs
    held 290 MB for nothing. (Lower thresholds of glibc would do it alone, but double the time of torch's detector.)
    """
    Image.core.set_block_size(2**26)  # type: ignore[attr-defined]
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 where the metadata is damaged."""
    try:
        value: Any = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  # as Pillow's decoders
        return 1
    return value if value in range(1, 9) else 1


def _rows(image: Image.Image) -> Iterator[Image.Image]:
    """The image in pieces of some rows, from top to bottom."""
    rows = max(1, STRIP // image.width)
    for y in range(0, image.height, rows):
        yield image.crop((0, y, image.width, min(y + rows, image.height)))


def _rgb(strip: Image.Image, top: float) -> NDArray[np.uint8]:
    """uint8 [h, w, 3], or [h, w, 1] for 16-bit grey and floats, whose range 0 to ``top`` is scaled to 8 bits."""
    if strip.mode[0] in "IF":
        grey = np.nan_to_num(np.asarray(strip, np.float32)) / top * 255
        return grey.clip(0, 255).astype(np.uint8)[:, :, None]
    if strip.has_transparency_data:
        white = Image.new("RGBA", strip.size, "white")
        strip = Image.alpha_composite(white, strip.convert("RGBA"))
    return np.asarray(strip.convert("RGB"))


def upright(pieces: Iterator[Header | NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], Header]:
    """The upright image, RGB uint8 [h, w, 3], that a header and strips make, and the header."""
    header = next(pieces)
    assert isinstance(header, Header)
    if 7 * header.width * header.height > LARGE_COST:
        return_memory()
    image, first = header.empty(), 0
    stored = header.stored(image)
    for strip in pieces:
        assert not isinstance(strip, Header)
        stored[first : first + len(strip)] = strip
        first += len(strip)
    return image, header


class _Borrowed(io.RawIOBase):
    """The file that a request is about, read through the process that asks."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO, size: int) -> None:
        self._requests, self._answers, self._size, self._at = requests, answers, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._at))
        if not wanted:
            return 0
        _say(self._answers, read=[self._at, wanted])
        length = self._requests.readline()
        data = self._requests.read(int(length or 0))
        if not length or len(data) < int(length):
            sys.exit()  # the process that asks has ended, or could not read
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _say(answers: BinaryIO, data: bytes | memoryview = b"", **message: Any) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.write(data)
    answers.flush()


def _serve() -> None:
    """Decode one photograph for each request, until there are no more. The kernel ends it after a request's CPU time."""
    answers = os.fdopen(os.dup(1), "wb", BUFFER)
    os.dup2(2, 1)  # whatever a library prints is no answer
    requests = sys.stdin.buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks decides when to stop
    _limit_memory()
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        try:
            raw = _Borrowed(requests, answers, request["size"])
            held = request["size"] <= HELD_BYTES
            file = io.BytesIO(raw.read()) if held else io.BufferedReader(raw, BUFFER)
            for piece in strips(file, request["longest"]):
                if isinstance(piece, Header):
                    _say(answers, header=asdict(piece))
                else:
                    _say(answers, piece.data, rows=len(piece))
            _say(answers, end=True)
        except Rejected as rejected:
            _say(answers, rejected=[rejected.reason, rejected.detail[:500]])
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    """Let allocations fail beyond what decoding may take: a file can lie about its cost."""
    if not os.path.exists("/proc/self/status"):
        return  # only Linux counts so
    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + MAX_COST + SPARE, most))


if __name__ == "__main__":
    _serve()
