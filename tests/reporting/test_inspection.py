"""What there is to see of a faces folder: right numbers, every reason, hostile names as text, errors as one line."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from facerec import publish, schema, storage
from facerec.records import Shown, read_page
from facerec.reporting import pictures
from facerec.reporting.inspection import MOST_SAMPLES, InspectConfig, inspect
from tests.reporting.test_page import HOSTILE, Elements, jpeg
from tests.support.generations import generation

FACES, SHARD, ROW_GROUP = 101, 40, 16
REASONS = [("image", "no_face")] * 50 + [("image", "unreadable")] * 2 + [("face", "not_subject")] * 5


def face(number: int) -> dict[str, Any]:
    """Sizes 1 to 101 pixels, confidences 0 to 1, blurs 0 to 1,000."""
    return {
        "face_id": f"{number:032x}",
        "identity": HOSTILE,
        "image": {"bytes": jpeg(64, 64), "path": None},
        "source_uri": f"/nowhere/{HOSTILE}/{number}.jpg",
        "box": [0, 0, number + 1, 500],
        "landmarks": [number / 2] * 10,
        "confidence": number / 100,
        "blur": number * 10,
        "phash": number,
    }


def write(folder: Path, faces: list[dict[str, Any]], rejected: str = f"/{HOSTILE}") -> str:
    """Publish faces in shards of SHARD, and rejects of every kind in REASONS."""
    rejects = [
        {
            "level": level,
            "source_uri": rejected,
            "identity": None,
            "reason": reason,
            "detail": HOSTILE,
        }
        for level, reason in REASONS
    ]
    tables = [
        ("faces", pa.Table.from_pylist(faces[at : at + SHARD], schema.FACES))
        for at in range(0, len(faces), SHARD)
    ]
    tables.append(("rejects", pa.Table.from_pylist(rejects, schema.REJECTS)))
    counts = {
        "photographs": 153,
        "photographs_with_faces": 101,
        "faces": len(faces),
        "identities": 1,
        "ignored_files": 7,
        "image_rejects": {"no_face": 50, "unreadable": 2},
        "face_rejects": {"not_subject": 5},
        "near_duplicate_groups": 3,
    }
    conflicts = [{"source_hash": "0", "identities": [HOSTILE, "Ada"]}]
    with generation(folder) as made:
        files = []
        for number, (kind, table) in enumerate(tables):
            sizes = [min(ROW_GROUP, table.num_rows - at) for at in range(0, table.num_rows, ROW_GROUP)]
            files.append(made.write(f"{kind}-{number}.parquet", kind, table, row_groups=sizes))
        made.publish(files, {"counts": counts, "label_conflicts": conflicts})
    return str(folder)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("published"), [face(number) for number in range(FACES)])


def test_text_and_page_have_the_counts_and_quantiles(faces: str, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    text = inspect(InspectConfig(faces=faces, out=str(out)))
    said = [line.split() for line in text.splitlines()]
    shown = out.read_text()
    for name, values in {
        "photographs": "153",
        "photographs rejected: no_face": "50",
        "photographs rejected: unreadable": "2",
        "further faces rejected: not_subject": "5",
        "groups of faces that look the same": "3",
        "face size, pixels": "1 2 6 26 51 76 96 100 101",
        "confidence": "0.0000 0.0100 0.0500 0.2500 0.5000 0.7500 0.9500 0.9900 1.0000",
        "blur (low is blurred)": "0 10 50 250 500 750 950 990 1,000",
    }.items():
        assert [*name.split(), *values.split()] in said
        cells = "".join(f'<td class="number">{value}</td>' for value in values.split())
        assert f"<td>{name}</td>{cells}" in shown


def test_hostile_names_stay_text_and_no_request_leaves_the_page(faces: str, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    inspect(InspectConfig(faces=faces, out=str(out)))
    html, parser, plain = out.read_text(), Elements(), Elements()
    parser.feed(html)
    plain.feed(html.replace("alert(1)", ""))
    assert parser.scripts == plain.scripts == 6  # the record, plotly.js, three charts, the resize
    assert HOSTILE not in html
    assert all(address.startswith("data:") for address in parser.addresses)
    assert "<bdi>&lt;script&gt;alert(1)&lt;/script&gt;</bdi> / <bdi>Ada</bdi>" in html
    assert "not there any more" in html
    assert len(html) < 15_000_000


def test_the_record_names_everybody_on_the_page_and_nobody_else(faces: str, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    inspect(InspectConfig(faces=faces, out=str(out), samples=7))
    dataset = publish.open_dataset(faces, "")
    rows = pictures.contacts(dataset, 7) + pictures.rejects(dataset, 7)
    shown = read_page(out.read_text())
    assert shown is not None
    assert shown == Shown.of(rows) | Shown(frozenset([HOSTILE, "Ada"]))
    assert len(shown.face_ids) == 7
    assert f"/{HOSTILE}" in shown.source_uris


def test_without_samples_the_page_has_no_picture(faces: str, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    inspect(InspectConfig(faces=faces, out=str(out), samples=0))
    assert out.read_text().count("data:image/jpeg") == 0


def test_the_sample_is_of_all_shards_and_the_same_each_time(faces: str) -> None:
    dataset = publish.open_dataset(faces, "")
    first, again = (pictures.contacts(dataset, 30) for _ in range(2))
    numbers = [row["phash"] for row in first]
    assert numbers == [row["phash"] for row in again]
    assert len(set(numbers)) == 30
    assert {number // SHARD for number in numbers} == {0, 1, 2}
    assert [row["confidence"] for row in first] == [pytest.approx(number / 100) for number in numbers]
    assert len(pictures.contacts(dataset, 500)) == FACES


@pytest.mark.parametrize("count, shown", [(0, 0), (1, 3), (9, 8), (999, 57)])
def test_rejects_of_every_reason_are_shown(faces: str, count: int, shown: int) -> None:
    rows = pictures.rejects(publish.open_dataset(faces, ""), count)
    assert len(rows) == shown
    assert not rows or {(row["level"], row["reason"]) for row in rows} == set(REASONS)


def test_faces_that_no_detector_found_have_no_measures_and_still_a_page(tmp_path: Path) -> None:
    unmeasured = dict.fromkeys(["identity", "box", "landmarks", "confidence", "blur"])
    folder = write(tmp_path / "faces", [{**face(0), **unmeasured}])
    text = inspect(InspectConfig(faces=folder, out=str(tmp_path / "page.html")))
    assert "confidence" not in text
    assert "no name" in (tmp_path / "page.html").read_text()


def test_a_page_of_nothing_but_noise_stays_below_15_megabytes(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    noise.save(tmp_path / "noise.png")
    row = face(0) | {"source_uri": str(tmp_path / "noise.png")}
    row["image"] = {"bytes": (tmp_path / "noise.png").read_bytes(), "path": None}
    folder = write(tmp_path / "faces", [row] * MOST_SAMPLES, row["source_uri"])
    inspect(InspectConfig(faces=folder, out=str(tmp_path / "page.html"), samples=MOST_SAMPLES))
    assert 10_000_000 < (tmp_path / "page.html").stat().st_size < 15_000_000


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{tmp}/none"], ["no such folder", "jobs/align.py"]),
        (["{tmp}"], ["no manifest.json"]),
        (["{vectors}"], ["holds no aligned faces"]),
        (["{damaged}"], ["faces-0.parquet is not there", "jobs/align.py again"]),
        (["{faces}", "--samples", "-1"], ["samples is -1", "--samples"]),
        (["{faces}", "--samples", "51"], ["samples is 51", "0 to 50"]),
        (["{faces}", "--samples", "many"], ["samples", "many"]),
        (["{faces}", "--out", "{faces}/manifest.json"], ["manifest.json", ".html"]),
        (["{faces}", "--out", "{tmp}/folder.html"], ["folder.html", "is a folder", "--out"]),
        ([], ["faces"]),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_nothing_is_written(
    faces: str,
    tmp_path: Path,
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with generation(tmp_path / "vectors") as made:
        made.publish([], {})
    manifest = storage.read_json(f"{faces}/manifest.json")
    storage.write_json(str(tmp_path / "damaged" / "manifest.json"), manifest)
    (tmp_path / "folder.html").mkdir()
    places = {
        "tmp": tmp_path,
        "faces": faces,
        "vectors": tmp_path / "vectors",
        "damaged": tmp_path / "damaged",
    }
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["align.py", "inspect", *(part.format(**places) for part in arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(Path(__file__).parents[2] / "jobs" / "align.py"), run_name="__main__")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("align inspect: error: ")
    assert said.count("\n") == 1
    assert all(word in said for word in words)
    assert sorted(tmp_path.rglob("*")) == before
    assert storage.read_json(f"{faces}/manifest.json") == manifest
