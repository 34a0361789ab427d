"""The process in which photographs are decoded: its clock and its memory, how it ends, and what it is not blamed for."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerec import access, decoding, pixels
from facerec.pixels import Rejected, count_scans
from facerec.reporting import pictures
from tests.bench.attacks.decoder import encoded, jpeg_scans, tiff_strips

SOUND = encoded(Image.effect_noise((80, 60), 80).convert("RGB"), "PNG")


@pytest.fixture(autouse=True)
def own_decoder() -> Iterator[None]:
    """A decoder of the test's own, ended with it."""
    decoding._decoder.cache_clear()
    yield
    decoding._decoder(os.getpid())._end()
    decoding._decoder.cache_clear()


def decodes() -> bool:
    """Whether a sound photograph is decoded as in this process."""
    return np.array_equal(decoding.decode(SOUND), pixels.upright(pixels.strips(io.BytesIO(SOUND)))[0])


def test_a_photograph_that_takes_too_long_is_rejected_inside_c_code_and_the_next_one_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """libtiff decodes all strips in one call: 54 GB of empty blocks in 1.4 MB."""
    monkeypatch.setattr(decoding, "SECONDS", 0.3)
    bomb = tiff_strips(60_000, 900_000)
    with pytest.raises(Rejected, match=r"^too_large: .* 0\.3 s of CPU time"):
        decoding.decode(bomb)
    assert pictures.picture(bomb).missing == "too large to be shown"
    assert decodes()


def test_memory_beyond_the_budget_is_refused_by_the_system_as_a_file_may_lie_about_its_cost() -> None:
    code = """
import sys
import numpy as np
from facerec import pixels
pixels._limit_memory()
held = np.ones(pixels.MAX_COST, np.uint8)
try:
    np.ones(2 * pixels.SPARE, np.uint8)
except MemoryError:
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7


@pytest.mark.parametrize("progressive", [False, True])
def test_scans_are_budgeted_whether_progressive_or_not(progressive: bool) -> None:
    bomb = jpeg_scans(6500, 6500, 3000, progressive=progressive)
    assert len(bomb) < 31_000
    with pytest.raises(Rejected, match=r"too_large: 6500 x 6500 pixels of JPEG in 3,002 scans; at most 118"):
        decoding.decode(bomb)
    assert pictures.picture(bomb).missing == "too large to be shown"


def test_memory_is_budgeted_by_coefficients_for_several_scans_whether_progressive_or_not() -> None:
    """50 megapixels are within the budget in one scan, and not where all coefficients are held."""
    for progressive in (False, True):
        with pytest.raises(Rejected, match=r"too_large: 7100 x 7100 pixels of JPEG may take 5\d\d,"):
            decoding.decode(jpeg_scans(7100, 7100, 1, progressive=progressive))


def test_scans_are_counted_between_the_markers_that_count() -> None:
    image = Image.effect_noise((640, 480), 90).convert("RGB")
    thumbnail = encoded(image.resize((64, 48)), "JPEG", progressive=True)
    exif = b"Exif\0\0" + thumbnail
    plain, restarts = encoded(image, "JPEG", quality=97), encoded(image, "JPEG", restart_marker_blocks=1)
    assert count_scans(plain) == count_scans(restarts) == 1
    assert count_scans(encoded(image, "JPEG", exif=exif)) == 1
    assert count_scans(encoded(image, "MPO", save_all=True, append_images=[image])) == 1
    assert count_scans(encoded(image, "JPEG", progressive=True)) == 10
    assert count_scans(jpeg_scans(64, 64, 7)) == 9
    assert count_scans(plain[:5000] + b"\xff") == 1
    assert count_scans(b"\xff\xd8\xff\xff\xff\xda") == 1  # fill bytes


class Slow(io.BytesIO):
    """A file on a slow network."""

    def read(self, size: int | None = -1) -> bytes:
        time.sleep(0.4)
        return super().read(size)


class Faulty(io.BytesIO):
    """A file on a disk that fails."""

    def read(self, size: int | None = -1) -> bytes:  # noqa: ARG002
        raise OSError(errno.EIO, "Input/output error")


def test_slow_reads_take_none_of_a_photographs_time_and_faults_of_reading_are_no_reject(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoding, "SECONDS", 0.3)
    assert decodes()  # starts the process
    assert decoding.decode(Slow(SOUND)).shape == (60, 80, 3)
    with pytest.raises(OSError, match="Input/output error") as caught:
        decoding.decode(Faulty(SOUND))
    assert caught.value.errno == errno.EIO
    assert decodes()


def test_a_large_file_is_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.effect_noise((4000, 4000), 90).convert("RGB")
    data = encoded(image, "PNG", compress_level=1)
    assert len(data) > 2 * pixels.BUFFER + pixels.HELD_BYTES
    read: list[int] = []
    file = io.BytesIO(data)
    monkeypatch.setattr(
        decoding, "_send", lambda child, *data: read.append(len(data[-1])) or send(child, *data)
    )
    np.testing.assert_array_equal(decoding.decode(io.BufferedReader(file, pixels.BUFFER)), np.asarray(image))  # type: ignore[arg-type]
    assert max(read) <= pixels.BUFFER


send = decoding._send


def dying(*signals: str) -> Callable[[], subprocess.Popen[bytes]]:
    """Starts decoders that end by these signals at the first request, one after the other, and then real ones."""
    left, start = list(signals), decoding._start

    def started() -> subprocess.Popen[bytes]:
        if not left:
            return start()
        code = f"import os, signal, sys; sys.stdin.readline(); os.kill(os.getpid(), signal.{left.pop(0)})"
        return subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=-1
        )

    return started


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL"])
def test_a_decoder_that_crashes_is_a_reject_and_takes_nobody_with_it(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_start", dying(how))
    with pytest.raises(Rejected, match=f"^unreadable: the decoder crashes on it .{how}"):
        decoding.decode(SOUND)
    assert decodes()


def test_a_decoder_that_is_killed_from_outside_says_nothing_about_the_photograph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoding, "_start", dying("SIGKILL"))
    assert decodes()
    decoding._decoder(os.getpid())._end()
    monkeypatch.setattr(decoding, "_start", dying("SIGKILL", "SIGTERM"))
    with pytest.raises(OSError, match=r"ended twice \(signal 15\).*memory") as caught:
        decoding.decode(SOUND)
    assert caught.value.errno == errno.ENOMEM
    assert decodes()


def test_a_decoder_that_cannot_be_started_says_nothing_about_the_photograph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoding._decoder(os.getpid())._end()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(OSError, match="the decoder cannot be started: No such file") as caught:
        decoding.decode(SOUND)
    assert caught.value.errno not in access.OF_ONE_FILE
    monkeypatch.undo()
    assert decodes()


def test_the_process_ends_with_the_one_that_asks() -> None:
    code = f"""
import os
from facerec import decoding
decoding.decode(bytes.fromhex("{SOUND.hex()}"))
print(decoding._decoder(os.getpid())._child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    process = int(done.stdout)
    for _ in range(100):
        status = Path(f"/proc/{process}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"process {process} is still there")
