"""`make fuzz`: 10,000 damaged images through the aligner. Each ends as rows, or its number is printed.

Photograph ``number`` is a pure function of its number: a small image in one of many formats, damaged once to three
times. Child processes align them part by part, so that a decoder that crashes or hangs is found as well; the part that
died is run again one by one, with the traceback of the crash.
"""

from __future__ import annotations

import faulthandler
import functools
import io
import math
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from facerec import schema, synthetic
from facerec.alignment.aligner import Aligner
from facerec.alignment.config import AlignConfig
from facerec.photographs import as_table
from tests.bench.targets import Row, conclude, megabytes

PART = 25
SECONDS = 10
"""CPU time that a part may take at most, and so any photograph."""
MEMORY = 1536.0
"""Most that an actor may hold, MiB."""

Damage = Callable[[bytes, np.random.Generator], bytes]


def main() -> None:
    """Fuzz, print the table, and exit 1 where something failed."""
    arguments = [int(argument) for argument in sys.argv[1:]]
    first, count, part = arguments + [0, 10_000, PART][len(arguments) :]
    started = time.monotonic()
    reasons, peak, failures = fuzz(first, count, part)
    rows = [
        Row(f"damaged images, from {first} on", count, ""),
        Row("  in", time.monotonic() - started, "s"),
        Row("  that crashed, hung, vanished or raised", len(failures), "", at_most=0),
        Row("most memory of a child", peak, "MiB", at_most=MEMORY),
        *(Row(f"rows: {reason}", number, "") for reason, number in sorted(reasons.items())),
    ]
    conclude("fuzz", rows, [f"again: python -m tests.bench.fuzz {failure}" for failure in failures])


def fuzz(first: int, count: int, part: int = PART) -> tuple[Counter[str], float, list[str]]:
    """Rows by reason (``face`` for a face), most memory of a child in MiB, and what failed, as numbers and words."""
    reasons, failures, peak, at = Counter[str](), list[str](), 0.0, first
    while at < first + count and len(failures) < 20:
        command = [
            sys.executable,
            "-m",
            "tests.bench.fuzz",
            "child",
            str(at),
            str(first + count - at),
            str(part),
        ]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in child.stdout.splitlines():
            words = line.split()
            if words[:1] == ["part"]:
                at, reasons = int(words[1]), reasons + Counter(words[3:])
                peak = max(peak, float(words[2]))
        if child.returncode:
            size = min(part, first + count - at)
            traceback = max(child.stderr.rfind("most recent call") - 200, 0)  # a list of modules follows it
            said = child.stderr[traceback : traceback + 2000].strip()
            failures += (
                [f"{at} 1 1\n{said}"] if size == 1 else fuzz(at, size, 1)[2] or [f"{at} {size}\n{said}"]
            )
            at += size
    return reasons, peak, failures


def child(first: int, count: int, part: int) -> None:
    """Align numbers ``first`` on; a line a part: the number after it, the peak in MiB, the reason of each row."""
    faulthandler.enable()
    faulthandler.register(signal.SIGXCPU, chain=True)
    aligner = Aligner(AlignConfig())
    with tempfile.TemporaryDirectory() as folder:
        for at in range(first, first + count, part):
            paths = [Path(folder) / f"{number}.jpg" for number in range(at, min(at + part, first + count))]
            for path in paths:
                path.write_bytes(damaged(int(path.stem)))
            _, most = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + SECONDS, most))
            rows = aligner(as_table([str(path) for path in paths], ["x"] * len(paths)))
            for path in paths:
                path.unlink()
            reasons = [reason or "face" for reason in rows["reason"].to_pylist()]
            if lost := {str(path) for path in paths} - set(rows["source_uri"].to_pylist()):
                raise AssertionError(f"no row of {lost}")
            if unknown := set(reasons) - {"face", *schema.REASONS}:
                raise AssertionError(f"no reasons: {unknown}")
            print("part", at + len(paths), megabytes("VmHWM"), *reasons, flush=True)


def damaged(number: int) -> bytes:
    """Image ``number``'s bytes."""
    random = np.random.default_rng(number)
    data = _any(_sound(), random)
    for _ in range(random.integers(1, 4)):
        data = _any(DAMAGES, random)(data, random)
    return data


T = TypeVar("T")


def _any(values: list[T], random: np.random.Generator) -> T:
    return values[int(random.integers(len(values)))]


@functools.cache
def _sound() -> list[bytes]:
    """The same drawn person, small, in every format and mode that is read."""
    face = Image.fromarray(synthetic.render(0, 0, side=72))
    grey, alpha = face.convert("L"), face.convert("RGBA")
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6

    def film() -> dict[
        str, object
    ]:  # an image of its own each time: Pillow leaves the encoder's settings on it
        return {"save_all": True, "append_images": [face.rotate(90)]}

    kinds: list[tuple[Image.Image, str, dict[str, object]]] = [
        (face, "JPEG", {"exif": turned}),
        (face, "JPEG", {"progressive": True, "subsampling": 0}),
        (face, "JPEG", {"restart_marker_blocks": 4}),
        (grey, "JPEG", {}),
        (face.convert("CMYK"), "JPEG", {"progressive": True}),
        (face, "MPO", film()),
        (face, "PNG", {"exif": turned}),
        (face, "PNG", film()),
        (alpha, "PNG", {}),
        (face.quantize(64), "PNG", {"transparency": 3}),
        (deep, "PNG", {}),
        (face.convert("1"), "PNG", {}),
        (face, "GIF", {}),
        (face, "GIF", film()),
        (face, "WEBP", {"exif": turned}),
        (alpha, "WEBP", {"lossless": True}),
        (face, "WEBP", film()),
        (face, "AVIF", {"speed": 10}),
        (alpha, "AVIF", {"speed": 10, "exif": turned}),
        (face, "TIFF", {"exif": turned}),
        (face, "TIFF", film()),
        *((face, "TIFF", {"compression": f"tiff_{name}"}) for name in ("lzw", "adobe_deflate", "jpeg")),
        (alpha, "TIFF", {"compression": "packbits"}),
        (deep, "TIFF", {"compression": "tiff_lzw"}),
        (face.convert("CMYK"), "TIFF", {}),
        (grey.convert("F"), "TIFF", {}),
        (grey.convert("1"), "TIFF", {"compression": "group4"}),
        (face, "BMP", {}),
        (face.quantize(16), "BMP", {}),
        (face, "PPM", {}),
        (deep, "PPM", {}),
    ]
    encoded = []
    for image, kind, options in kinds:
        sink = io.BytesIO()
        image.copy().save(sink, kind, **options)
        encoded.append(sink.getvalue())
    plain = " ".join(map(str, np.asarray(grey).ravel()))
    return [*encoded, f"P2 {grey.width} {grey.height} 255 {plain}".encode()]


def _flip_bits(data: bytes, random: np.random.Generator) -> bytes:
    pixels = np.frombuffer(data, np.uint8).copy()
    places = random.integers(0, max(len(pixels), 1), random.integers(1, 17))
    if len(pixels):
        pixels[places] ^= (1 << random.integers(0, 8, len(places))).astype(np.uint8)
    return pixels.tobytes()


def _edit_header(data: bytes, random: np.random.Generator) -> bytes:
    """Set a few of the first bytes."""
    at, length = int(random.integers(0, 100)), int(random.integers(1, 5))
    return data[:at] + random.bytes(length) + data[at + length :]


def _lie_about_length(data: bytes, random: np.random.Generator) -> bytes:
    """Set 2 or 4 bytes, most often of the header, to a number that someone may trust."""
    at = int(random.integers(0, _any([40, 400, len(data) + 1], random)))
    size = _any([2, 4], random)
    value = _any([0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 6000, 20000], random)
    order = _any(["little", "big"], random)
    return data[:at] + (value % 256**size).to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]


def _truncate(data: bytes, random: np.random.Generator) -> bytes:
    return data[: int(random.integers(0, len(data) + 1))]


def _splice(data: bytes, random: np.random.Generator) -> bytes:
    """The beginning of one file and the end of another."""
    other = _any(_sound(), random)
    return data[: int(random.integers(0, len(data) + 1))] + other[int(random.integers(0, len(other))) :]


def _repeat(data: bytes, random: np.random.Generator) -> bytes:
    """A piece of it many times."""
    at, end = np.sort(random.integers(0, len(data) + 1, 2)).tolist()
    return data[:at] + data[at:end] * int(random.integers(2, 40)) + data[end:]


def _erase(data: bytes, random: np.random.Generator) -> bytes:
    """Cut a piece out, or set it to zeros or ones."""
    at = int(random.integers(0, len(data) + 1))
    piece = data[at : at + int(random.integers(1, 64))]
    return data[:at] + _any([b"", b"\0", b"\xff"], random) * len(piece) + data[at + len(piece) :]


DAMAGES: list[Damage] = [
    _flip_bits,
    _edit_header,
    _lie_about_length,
    _lie_about_length,
    _truncate,
    _splice,
    _repeat,
    _erase,
]


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*(int(argument) for argument in sys.argv[2:]))
    else:
        main()
