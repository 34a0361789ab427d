"""Any file: upright pixels or a reason, in bounded memory and time, and never an exception."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from facerec import decoding, pixels, synthetic
from facerec.alignment import sources
from facerec.alignment.aligner import Aligner
from facerec.alignment.config import AlignConfig
from facerec.alignment.detector import Detector
from facerec.errors import SourceError
from facerec.photographs import as_table
from tests.bench import fuzz
from tests.bench.attacks.decoder import jpeg_scans

ORIENTATIONS = range(1, 9)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def noise(height: int, width: int, channels: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_comes_upright(kind: str, orientation: int) -> None:
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30] = (250, 20, 20)
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = Image.fromarray(upright)
    if undo is not None:
        stored = stored.transpose(Image.Transpose(undo))
    options = {"lossless": True} if kind == "WEBP" else {}
    seen = decoding.decode(encoded(stored, kind, exif=oriented(orientation), **options))
    np.testing.assert_array_equal(seen, upright)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_strips_give_what_the_whole_gives(
    monkeypatch: pytest.MonkeyPatch, mode: str, orientation: int
) -> None:
    monkeypatch.setattr(pixels, "STRIP", 200)  # in this process, as the decoder's own is beyond reach
    image = Image.fromarray(noise(57, 31, 4)).convert(mode)
    whole = Image.new("RGBA", image.size, "white")
    whole.alpha_composite(image.convert("RGBA"))
    whole.getexif()[0x0112] = orientation
    wanted = ImageOps.exif_transpose(whole).convert("RGB")
    data = encoded(image, "PNG", exif=oriented(orientation))
    for seen in (pixels.upright(pixels.strips(io.BytesIO(data)))[0], decoding.decode(data)):
        np.testing.assert_array_equal(seen, np.asarray(wanted))


def test_damaged_exif_is_no_reason_to_doubt_the_pixels() -> None:
    image = Image.fromarray(noise(20, 30, 3))
    seen = decoding.decode(encoded(image, "PNG", exif=b"Exif\0\0I\1\0\0\0\0"))
    np.testing.assert_array_equal(seen, np.asarray(image))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "LA", "I;16", "I;16B", "I", "F", "1"])
def test_every_colour_mode_gives_the_same_grey(mode: str) -> None:
    if mode.startswith("I;16"):
        image = Image.frombytes(
            mode, (32, 32), (40_000).to_bytes(2, "big" if "B" in mode else "little") * 1024
        )
        wanted = 40_000 * 255 // 65_535
    else:
        image, wanted = Image.new("L", (32, 32), 255).convert(mode), 255
    seen = decoding.decode(encoded(image, "TIFF"))
    assert seen.shape == (32, 32, 3)
    assert np.abs(seen.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_no_negative_and_adobes_inverted_values_are_none_either(kind: str) -> None:
    """Pillow writes JPEGs as Adobe does, inverted and marked so."""
    data = encoded(Image.new("RGB", (32, 32), (200, 40, 60)).convert("CMYK"), kind)
    assert (b"Adobe" in data) == (kind == "JPEG")
    assert np.abs(decoding.decode(data).astype(int) - (200, 40, 60)).max() <= 4


FACE = Image.fromarray(synthetic.render(0, 0, side=96))


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "PPM"])
def test_every_format_gives_the_same_picture(kind: str) -> None:
    seen = decoding.decode(encoded(FACE, kind))
    assert np.abs(seen.astype(int) - np.asarray(FACE)).mean() < 8


def test_of_a_film_the_first_picture_is_taken() -> None:
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(FACE, kind, save_all=True, append_images=[Image.new("RGB", FACE.size)])
        assert np.abs(decoding.decode(data).astype(int) - np.asarray(FACE)).mean() < 8


def text_bomb() -> bytes:
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 2**24, zip=True)
    return encoded(FACE, "PNG", pnginfo=info)


@pytest.mark.parametrize(
    "data, reason, words",
    [
        (b"", "unreadable", "empty"),
        (b"no image", "unreadable", "begins with b'no image'"),
        (b"<!DOCTYPE html><p>Not found", "unreadable", "<!DOCTYPE html>"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unreadable", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "unreadable", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "unreadable", "none of JPEG"),
        (encoded(FACE, "JPEG")[:900], "unreadable", "truncated"),
        (encoded(FACE, "PNG")[:900], "unreadable", "truncated"),
        (encoded(Image.new("RGB", (5, 300)), "PNG"), "too_small", "5 x 300"),
        (b"P6 10000 9000 255\n", "too_large", "10000 x 9000 pixels"),
        (b"GIF89a\xff\xff\xff\xff" + encoded(FACE, "GIF")[10:], "too_large", "pixels"),
        (text_bomb(), "unreadable", "MAX_TEXT_CHUNK"),
        (jpeg_scans(5000, 5000, 1000), "too_large", "1,002 scans"),
        (jpeg_scans(5000, 5000, 1000, progressive=True), "too_large", "1,002 scans"),
        (b"P3 3000 3000 255 " + b"1 " * 9000, "too_large", "slow kind"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_file_is_a_reason_not_a_crash(data: bytes, reason: str, words: str) -> None:
    with pytest.raises(pixels.Rejected) as caught:
        decoding.decode(data)
    assert caught.value.reason == reason
    assert words in caught.value.detail
    assert "0x" not in caught.value.detail


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    return Aligner(AlignConfig())


def align(aligner: Aligner, paths: list[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = aligner(as_table(paths, ["x"] * len(paths))).to_pylist()
    return rows


def test_files_of_any_name_and_kind_are_counted(tmp_path: Path, aligner: Aligner) -> None:
    good = encoded(Image.fromarray(synthetic.render(0, 0)), "JPEG")
    folder = os.fsencode(tmp_path) + b'/Ada \'the "first""\n L\xc3\xb6velace'
    os.makedirs(folder + b"/a folder.jpg")
    names = [
        b"a b.jpg",
        b"'q\" .png",
        "\N{SNOWMAN}é.jpg".encode(),
        b"line\nbreak.jpg",
        b"a folder.jpg/%41?#.JPG",
    ]
    for name in [*names, b"no utf\xe98.jpg"]:
        with open(folder + b"/" + name, "wb") as file:
            file.write(good)
    os.symlink(b"loop.jpg", folder + b"/loop.jpg")
    os.symlink(b"nowhere.jpg", folder + b"/dangling.jpg")
    os.symlink(b"/dev/zero", folder + b"/endless.jpg")
    os.symlink(b"..", folder + b"/up.jpg")
    os.symlink(folder + b"/a b.jpg", folder + b"/link.jpg")
    os.mkfifo(folder + b"/pipe.jpg")
    open(folder + b"/empty.jpg", "wb").close()

    listing = sources.list_photographs(str(tmp_path))
    rows = aligner(listing.photographs).to_pylist()
    said = {os.path.basename(row["source_uri"]): row["detail"] for row in rows if row["reason"]}
    faces = [row["source_uri"] for row in rows if not row["reason"]]
    assert len(rows) == len(faces) + len(said) == 12
    assert {os.fsencode(uri) for uri in faces} == {folder + b"/" + name for name in [*names, b"link.jpg"]}
    assert "not UTF-8" in said.pop(r"no utf\xe98.jpg")
    assert "pipe" in said.pop("pipe.jpg")
    assert "device" in said.pop("endless.jpg")
    assert "No such file" in said.pop("dangling.jpg")
    assert "symbolic links" in said.pop("loop.jpg")
    assert said == {"empty.jpg": "empty file"}


def test_a_manifest_may_name_folders_and_names_that_no_file_has(tmp_path: Path, aligner: Aligner) -> None:
    rows = align(aligner, [str(tmp_path), "/no\0ne.jpg", "/" + "n" * 5000])
    assert [row["reason"] for row in rows] == ["unreadable", "unreadable", "unavailable"]


def test_a_folder_that_cannot_be_listed_stops_the_run_before_it_loses_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Ada").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if path.endswith("Ada"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match=r"Ada' cannot be listed \(Permission denied\)"):
        sources.list_photographs(str(tmp_path))


@pytest.fixture(scope="module")
def odd(photographs_of_people: Path) -> dict[Path, str]:
    """The odd photographs and their categories."""
    folder = photographs_of_people / "odd"
    with open(folder / "manifest.csv", newline="") as file:
        return {folder / row["category"] / row["file"]: row["category"] for row in csv.DictReader(file)}


def test_every_odd_photograph_ends_as_a_face_or_a_reject(odd: dict[Path, str], aligner: Aligner) -> None:
    rows = align(aligner, list(map(str, odd)))
    ends = [(row["source_uri"], row["reason"]) for row in rows if row["level"] != "face"]
    assert sorted(str(uri) for uri, _ in ends) == sorted(map(str, odd))
    faceless = {Path(str(uri)): reason for uri, reason in ends if reason}
    natural = {path for path, kind in odd.items() if kind.startswith("natural") or kind in ("pose", "scale")}
    assert len(natural) > 30
    assert not natural & faceless.keys()
    damaged = [reason for path, reason in faceless.items() if odd[path] == "corrupt"]
    assert sorted(map(str, damaged)) == ["no_face"] * 2 + ["too_large"] + ["unreadable"] * 6
    assert all(faceless[path] == "no_face" for path, kind in odd.items() if kind == "no_face")


def test_faces_are_counted_right(odd: dict[Path, str]) -> None:
    """The digit of the name, a letter for one. Of at least 0.96: a medal (.82) and a hand (.95) are beyond 0.8."""
    detector, wrong = Detector(20, 0.05), {}
    for path in (path for path, kind in odd.items() if kind == "compreface_samples"):
        found = detector.detect_tight(decoding.decode(path.read_bytes()))
        count, kind = int((found.confidences >= 0.96).sum()), path.stem[-1]
        if count != (int(kind) if kind.isdigit() else 1):
            wrong[path.name] = count
    assert wrong == {}


@pytest.mark.parametrize("name, boxes", [("Pillow__hopper", True), ("exif-orientation-examples", False)])
def test_all_turned_copies_of_a_photograph_come_upright(
    odd: dict[Path, str], aligner: Aligner, name: str, boxes: bool
) -> None:
    paths = [path for path, kind in odd.items() if kind == "exif_rotated" and path.name.startswith(name)]
    seen = [decoding.decode(path.read_bytes()).astype(int) for path in paths]
    assert len(seen) == 7
    for image in seen:
        assert np.abs(image - seen[0]).mean() < 8  # they are compressed one by one; upside down it is 60
    if boxes:
        found = np.array([row["box"] for row in align(aligner, list(map(str, paths)))])
        assert np.abs(found - found[0]).max() <= 5


MEMORY = f"""
import os, sys
from tests.alignment.test_photograph import align
from facerec import decoding
from tests.bench.targets import megabytes
from facerec.alignment.detector import Detector
from facerec.alignment.aligner import Aligner
from facerec.alignment.config import AlignConfig
rows = align(Aligner(AlignConfig()), sys.argv[1:])
decoder = decoding._decoder(os.getpid())._child.pid
ours, most, idle = megabytes("VmHWM"), megabytes("VmHWM", decoder), megabytes("VmRSS", decoder)
print([row["detail"] for row in rows], ours, most, idle)
assert [row["reason"] for row in rows] == ["no_face"] * (len(sys.argv) - 1)
assert ours + idle <= {fuzz.MEMORY}
assert most <= 60 + {pixels.MAX_COST} / 2**20
"""


def test_an_actor_stays_below_its_memory_whatever_the_file(tmp_path: Path) -> None:
    """The dearest that are decoded, nothing in them so that they are looked at twice, and a line of pixels."""

    def dearest(mode: str, pixel: int) -> Image.Image:
        side = int(((pixels.MAX_COST - pixels.HELD_BYTES) / pixel) ** 0.5)
        return Image.new(mode, (side, side))

    dearest("RGB", 7).save(tmp_path / "a.jpg", exif=oriented(6))
    dearest("RGB", 10).save(tmp_path / "b.jpg", progressive=True, subsampling=0)
    dearest("RGBA", pixels.FRAMES).save(tmp_path / "c.webp", method=0)
    Image.new("L", (300_000, 12)).save(tmp_path / "d.png")
    paths = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", MEMORY, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_thousand_damaged_images_end_as_rows() -> None:
    reasons, peak, failures = fuzz.fuzz(0, 1000)
    assert not failures
    assert sum(reasons.values()) >= 1000
    assert reasons["unreadable"] > 200 < reasons["face"] + reasons["no_face"] + reasons["low_confidence"]
    assert peak <= fuzz.MEMORY
