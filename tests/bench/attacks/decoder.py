"""Files of 30 kB to 80 MB that cost a decoder minutes or gigabytes, through alignment's and through reporting's way to pixels.

Each file is made here, so that none is kept. An attack succeeds if a photograph is not done after its CPU time, takes
more memory than the budget, ends the process, or keeps a page waiting for a pipe.
"""

from __future__ import annotations

import io
import os
import resource
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from facerec import decoding, pixels
from facerec.reporting import pictures
from tests.bench.attacks import Attempt

CLOCK_S = 1
"""CPU time for a photograph while these attacks run. The clock is the same as with its ten seconds, only shorter."""
SLACK_S = 10
"""Wall time that is allowed beyond it, for a busy machine."""
MEMORY = pixels.MAX_COST + pixels.SPARE + 64 * 2**20
"""Most that a decoder's process may hold: the budget, what is spare, and Python with Pillow."""
TIMEOUT_S = 120
FACE = Image.new("RGB", (64, 64), (200, 150, 120))


def attacks() -> Iterator[Attempt]:
    """Every bomb by both ways, then files that are none."""
    clock, decoding.SECONDS = decoding.SECONDS, CLOCK_S
    decoding._decoder.cache_clear()  # so that the memory counted at the end is of these photographs
    try:
        for name, make in BOMBS.items():
            data = make()
            yield _attempt(f"{name}, {len(data):,} bytes, aligned", lambda data=data: _aligned(data))  # type: ignore[misc]
            yield _attempt(f"{name}, {len(data):,} bytes, on a page", lambda data=data: _shown(data))  # type: ignore[misc]
        yield from _no_files()
    finally:
        decoding.SECONDS = clock
    decoding._decoder(os.getpid())._end()
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    yield Attempt("memory of the decoder", most > MEMORY, f"{most:,} bytes, {MEMORY:,} allowed")


def _attempt(what: str, act: Callable[[], str]) -> Attempt:
    """The act in a thread of its own, so that one that never ends is a result and not the end of the attacks."""
    said: list[str] = []
    failed: list[str] = []

    def run() -> None:
        try:
            said.append(act())
        except BaseException as error:  # noqa: BLE001  # whatever it is, it would end the job
            failed.append(f"{type(error).__name__}: {error}")

    started = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    took = time.monotonic() - started
    words = (said or failed or ["not done"])[0]
    return Attempt(what, not said or took > CLOCK_S + SLACK_S, f"{took:.1f} s: {words[:90]}")


def _aligned(data: bytes) -> str:
    try:
        return f"{decoding.decode(data).shape}"
    except pixels.Rejected as rejected:
        return str(rejected)


def _shown(data: bytes) -> str:
    return pictures.picture(data).missing or "a picture"


def _no_files() -> Iterator[Attempt]:
    """What is called x.jpg and is no file: opening it must not wait."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        paths = {kind: Path(folder) / f"{kind}.jpg" for kind in ("pipe", "device", "socket", "folder")}
        os.mkfifo(paths["pipe"])
        paths["device"].symlink_to("/dev/zero")
        listening.bind(str(paths["socket"]))
        paths["folder"].mkdir()
        for kind, path in paths.items():
            yield _attempt(f"a {kind} called x.jpg, aligned", lambda path=path: _opened(str(path)))  # type: ignore[misc]
            yield _attempt(
                f"a {kind} called x.jpg, on a page",
                lambda path=path: pictures.photograph(str(path)).missing or "a picture",  # type: ignore[misc]
            )


def _opened(uri: str) -> str:
    try:
        with decoding.opened(uri) as file:
            return _aligned(file.read())
    except pixels.Rejected as rejected:
        return str(rejected)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image file."""
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def jpeg_scans(width: int, height: int, count: int, *, progressive: bool = False) -> bytes:
    """A JPEG of ``count`` empty scans, 10 bytes each: each makes the decoder pass over all pixels."""
    data = encoded(FACE, "JPEG", progressive=progressive, subsampling=0)
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data = data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]
    last = 0 if progressive else 63
    first, second, third = (struct.pack(">HHBBBBBB", 0xFFDA, 8, 1, c, 0, 0, last, 0) for c in (1, 2, 3))
    return data[: data.index(b"\xff\xda")] + first * count + second + third + b"\xff\xd9"


def jpeg_exif(segments: int) -> bytes:
    """A JPEG whose EXIF comes a byte a segment: Pillow copies all that came before for each."""
    data = encoded(FACE, "JPEG")
    return data[:2] + b"\xff\xe1\0\x09Exif\0\0x" * segments + data[2:]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_chunks(count: int) -> bytes:
    """A PNG with many empty chunks, of which Pillow keeps a list."""
    data = encoded(FACE, "PNG")
    return data[:33] + png_chunk(b"prVt", b"") * count + data[33:]


def tiff_strips(rows: int, junk: int) -> bytes:
    """A TIFF whose every row is a strip of the same ``junk`` bytes of empty deflate blocks and then one row."""
    width = 64
    packer = zlib.compressobj(9, zlib.DEFLATED, 15)
    row = packer.compress(b"\0" * width) + packer.flush()
    strip = row[:2] + b"\0\0\0\xff\xff" * (junk // 5) + row[2:]
    at, counts_at = 8, 8 + len(strip)
    offsets_at = counts_at + 4 * rows
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, rows),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, rows, offsets_at),
        (277, 3, 1, 1),
        (278, 4, 1, 1),
        (279, 4, rows, counts_at),
    ]
    directory = (
        struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4
    )
    tables = struct.pack(f"<{rows}I", *[len(strip)] * rows) + struct.pack(f"<{rows}I", *[at] * rows)
    return b"II*\0" + struct.pack("<I", offsets_at + 4 * rows) + strip + tables + directory


def bmp_moves(count: int) -> bytes:
    """An RLE-compressed BMP of many moves by nothing: Pillow reads them in Python."""
    palette = b"".join(bytes([n, n, n, 0]) for n in range(256))
    body = b"\0\2\0\0" * count + b"\0\1"
    info = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 8, 1, len(body), 0, 0, 256, 256)
    at = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + info + palette + body


BOMBS: dict[str, Callable[[], bytes]] = {
    "JPEG of 3,000 scans": lambda: jpeg_scans(7800, 7800, 3000),
    "progressive JPEG of 3,000 scans": lambda: jpeg_scans(6500, 6500, 3000, progressive=True),
    "JPEG with EXIF in two million pieces": lambda: jpeg_exif(2_000_000),
    "PNG with six million chunks": lambda: png_chunks(6_000_000),
    "TIFF of 60,000 strips in one place": lambda: tiff_strips(60_000, 900_000),
    "BMP of 20 million moves": lambda: bmp_moves(20_000_000),
    "PPM of four million comments": lambda: b"P3 64 64 255 " + b"#\n" * 4_000_000 + b"1 " * 12_288,
}
