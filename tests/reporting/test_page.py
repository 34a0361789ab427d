"""The page: every number is on it, hostile names stay text, and nothing leaves it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pytest
from PIL import EpsImagePlugin, ExifTags, Image

from facerec import decoding, publish, schema, storage
from facerec.errors import DatasetError, MismatchError
from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.identification import enrol, identify
from facerec.evaluation.pairs import all_pairs, hardest
from facerec.evaluation.verification import verify
from facerec.records import Shown, read_page
from facerec.reporting import experiment, page, people, pictures
from tests.support.browser import opened
from tests.support.faces import write_faces
from tests.support.generations import amend, generation

HOSTILE = "<script>alert(1)</script>"


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (width, height)).save(file, "JPEG", exif=exif)
    return file.getvalue()


PEOPLE, EACH = 12, 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> page.ReportConfig:
    """Faces, embeddings, metrics and numbers of a run, with people whose names are markup."""
    folder = tmp_path_factory.mktemp("report")
    faces = write_faces(folder / "faces", PEOPLE, EACH)
    faces = amend(faces, {"core_seconds": 4321})
    table = faces.read("faces", ["face_id", "source_uri"])
    names = np.repeat([HOSTILE, "Ada </script><b>", *(f"person {i}" for i in range(2, PEOPLE))], EACH)
    random = np.random.default_rng(0)
    vectors = np.repeat(random.normal(size=(PEOPLE, 128)), EACH, axis=0) + random.normal(size=(72, 128))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = {
        "face_id": table["face_id"],
        "identity": names.tolist(),
        "source_uri": table["source_uri"],
        "source_version": ["1"] * len(names),
        "phash": [0] * len(names),
        "box": [[0.0] * 4] * len(names),
        "confidence": [1.0] * len(names),
        "embedding": vectors.tolist(),
        **{name: ["model-a"] * len(names) for name in ("model_id", "preprocessing_id")},
        "faces_generation": [1] * len(names),
    }
    with generation(f"{folder}/embeddings") as made:
        embedded = made.write("part.parquet", "embeddings", pa.table(rows, schema.EMBEDDINGS))
        made.publish([embedded], {"model_id": "model-a"})
    report = numbers(vectors, names, rows["face_id"].to_pylist())
    report["config"] = {"embeddings": f"{folder}/embeddings", "run": f"{folder}/run"}
    jsonschema.validate(report, json.loads((files("facerec.evaluation") / "report.schema.json").read_text()))
    storage.write_json(f"{folder}/report.json", report)
    storage.write_json(f"{folder}/run/run.json", report["run"])
    lines = [
        {"step": i, "loss": 0.2, "active_fraction": 1, "d_ap": [0, 1, 2], "d_an": [1, 2, 3], "workers": 2}
        | {"elapsed_s": 50.0 * i, "validation": {"nearest_neighbour": 0.5}}
        for i in range(3)
    ]
    lines[0]["untrained"] = {"nearest_neighbour": 0.25}
    storage.write_bytes(f"{folder}/run/metrics.jsonl", "\n".join(map(json.dumps, lines)).encode())
    where = {name: f"{folder}/{name}" for name in ("faces", "run")}
    return page.ReportConfig(**where, report=f"{folder}/report.json", out=f"{folder}/report.html")


def numbers(vectors: Any, names: Any, face_ids: list[str]) -> dict[str, Any]:
    """A report as evaluation writes it: the vectors as trained, noise as the untrained control."""
    enrolled = enrol(names, np.arange(len(names)), EvaluateConfig(strangers=3), set())
    kinds = {"trained": vectors, "untrained": np.random.default_rng(1).normal(size=vectors.shape)}
    report: dict[str, Any] = {"identification": {}, "verification": {}, "clustering": {}}
    for kind, rows in kinds.items():
        pairs = all_pairs(rows, names, 0)
        report["identification"][kind] = identify(rows, enrolled, 0)[0] | {"seconds": 1.5}
        report["verification"][kind] = verify(pairs, 20, 0) | {
            "hardest": hardest(pairs, face_ids, names.tolist()),
            "seconds": 1.0,
        }
        report["clustering"][kind] = {"refused": "no", "seconds": 0.0}
    return report | {
        "format": page.FORMAT,
        "alignment": {
            "photographs": 12345,
            "photographs_with_faces": 12,
            "faces": 12,
            "identities": 2,
            "ignored_files": 3,
            "image_rejects": {"no_face": 777},
            "face_rejects": {},
        },
        "label_conflicts": 0,
        "headline": {kind: report["identification"][kind]["accuracy"] for kind in kinds},
        "unseen_people": sorted(set(names.tolist())),
        "left_out_people": [HOSTILE],
        "leakage": {"checked": False, "reason": "nobody looked"},
        "chosen_on": {"svm": "halves"},
        "run": {
            "config": {"model": HOSTILE},
            "split": {"train": ["x"]},
            "faces": {"digest": "d", "generation": 1, "folder": "faces"},
        },
        "embeddings": {"trained": "model-a", "untrained": "model-b"},
        "svm": {"sha256": "0", "model_id": "model-a"},
        "versions": {"facerec": "0"},
    }


@pytest.fixture(scope="module")
def html(config: page.ReportConfig) -> str:
    return Path(page.write_report(config)).read_text()


class Elements(HTMLParser):
    """Scripts and addresses, as a browser's parser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]


def test_names_stay_text_and_no_request_leaves_the_page(html: str) -> None:
    parser = Elements()
    parser.feed(html)
    assert all(address.startswith("data:") for address in parser.addresses)
    # plotly.js, its configuration and a chart each, the resize: none from a name.
    plain = Elements()
    plain.feed(html.replace("alert(1)", ""))
    assert parser.scripts == plain.scripts
    assert f"{HOSTILE}" not in re.sub(r"(?s)<script>.*?</script>", "", html, count=1)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_the_numbers_are_on_the_page(html: str) -> None:
    for text in ("12345", "777", "4,321", "nobody looked"):
        assert text in html
    assert re.search(r"train</td>\s*<td class=\"number\">200<", html)  # 100 s on 2 workers
    assert len(html) < 15_000_000


def test_the_record_names_everybody_on_the_page(config: page.ReportConfig, html: str) -> None:
    shown = read_page(html)
    assert shown is not None
    report = storage.read_json(config.report)
    table = publish.open_dataset(f"{Path(config.faces).parent}/embeddings", "").read("embeddings")
    assert shown.identities >= {*report["unseen_people"], *report["left_out_people"]}
    assert shown.face_ids == {*table["face_id"].to_pylist()}  # all are on the map
    assert len(shown.source_uris) == 24  # of the contact sheet


def test_of_a_thousand_people_the_record_names_those_who_are_on_the_page() -> None:
    names = [f"person {i}" for i in range(1000)]
    right = [[i, i, 5] for i in range(1000)]
    rows = [
        {"identity": name, "taken_for": "person 999" if name == "person 1" else None}
        | {"hits": 4 if name == "person 1" else 5, "test_faces": 5}
        for name in names
    ]
    said = {"people": names, "confusion": right, "per_identity": rows}
    assert people.named(said) == {*names[: people.MOST_CONFUSED], "person 999"}


@pytest.mark.parametrize("count", [0, 3])
def test_without_a_contact_sheet_the_page_has_no_picture(
    config: page.ReportConfig, tmp_path: Path, count: int
) -> None:
    out = f"{tmp_path}/report.html"
    text = Path(page.write_report(replace(config, contact_sheet=count, out=out))).read_text()
    assert (text.count("data:image/jpeg") > 0) == (count > 0)
    assert text.count("chart-map") > 0
    assert read_page(text) is not None


def test_a_page_that_another_program_wrote_has_no_record_and_an_older_one_is_an_error() -> None:
    assert read_page("<html><head><title>notes</title></head><body>Ann</body></html>") is None
    with pytest.raises(DatasetError, match="no record"):
        read_page("<head><title>facerec report</title></head><body>")
    for damaged in ("{", "[]", '{"identities": [1], "face_ids": [], "source_uris": []}', ""):
        with pytest.raises(DatasetError, match="damaged"):
            read_page(f'<head><script id="facerec-shows">{damaged}</script></head>')
    inside = '<head><title>facerec experiment</title></head><body><script id="facerec-shows">{}</script>'
    assert read_page(inside) is None


def test_an_experiments_page_shows_nobody(tmp_path: Path) -> None:
    uri = experiment.write_page(f"{tmp_path}/x.html", [], ["seed"], "seed", {"amount": 1, "equal": "steps"})
    assert read_page(Path(uri).read_text()) == Shown()


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="no chromium on this machine to open the page in"
)
@pytest.mark.parametrize("width", [390, 1400])
def test_in_a_browser_nothing_fails_or_leaves_and_the_map_shows_faces(
    config: page.ReportConfig, html: str, width: int
) -> None:
    assert html
    asyncio.run(look(Path(config.out), width))


async def look(file: Path, width: int) -> None:
    async with opened(file, width) as shown:
        charts = re.findall(r'id="(chart-\w+)"', file.read_text())
        assert len(charts) == 8
        for chart in charts:
            await shown.until(f"document.querySelector('#{chart} .main-svg') !== null")
        assert await shown.value("document.documentElement.scrollWidth <= innerWidth")
        point = "document.querySelector('#chart-map .points path')"
        await shown.value(f"{point}.scrollIntoView({{block: 'center'}})")
        x, y = await shown.value(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({point}.getBoundingClientRect())"
        )
        assert await shown.value("document.getElementById('pointed').hidden")
        await shown.point_at(x, y)
        await shown.until("!document.getElementById('pointed').hidden")
        assert await shown.value("document.querySelector('#pointed img').naturalWidth") == people.THUMBNAIL
        name = await shown.value("document.querySelector('#pointed figcaption').textContent")
        assert name in {f"{HOSTILE[:23]}…", "Ada </script><b>", *(f"person {i}" for i in range(PEOPLE))}
        assert shown.errors() == []
        assert shown.requests() == [f"file://{file}"]


def test_a_photograph_without_a_picture_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "large.jpg").write_bytes(b"P6 10000 9000 255\n")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink("/dev/zero", tmp_path / "endless.jpg")
    for name, why in {
        "gone": "not there any more",
        "bad": "not readable",
        "large": "too large",
        "folder": "cannot be read",
        "pipe": "cannot be read",
        "endless": "cannot be read",
        "no\0ne": "cannot be read",
    }.items():
        shown = pictures.photograph(str(tmp_path / f"{name}.jpg"))
        assert why in shown.missing
        assert not shown.url
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", 7)
    assert "too large" in pictures.photograph(str(tmp_path / "bad.jpg")).missing


@pytest.mark.parametrize("orientation, corner", [(1, (190, 70)), (6, (70, 190))])
def test_box_and_landmarks_lie_on_the_upright_photograph(orientation: int, corner: tuple[int, int]) -> None:
    """A 2,560 x 1,280 photograph is shown 256 wide, or 256 high where EXIF turns it: a tenth of its own pixels."""
    x, y = (10 * side for side in corner)
    shown = pictures.picture(jpeg(2560, 1280, orientation), [x, y, x + 300, y + 400], [x + 150, y + 200] * 5)
    image = Image.open(io.BytesIO(base64.b64decode(shown.url.partition(",")[2])))
    assert image.size == ((256, 128) if orientation == 1 else (128, 256))
    red, green, blue = np.moveaxis(np.asarray(image).astype(int), 2, 0)
    rows, columns = np.nonzero(green - np.maximum(red, blue) > 60)
    found = [columns.min(), rows.min(), columns.max(), rows.max()]
    np.testing.assert_allclose(found, [*corner, corner[0] + 30, corner[1] + 40], atol=1)
    rows, columns = np.nonzero(red - np.maximum(green, blue) > 60)
    np.testing.assert_allclose([columns.mean(), rows.mean()], [corner[0] + 15, corner[1] + 20], atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_colour_mode_has_a_picture(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (400, 300)).save(file, "TIFF")
    assert pictures.picture(file.getvalue()).url


def test_metrics_come_back_in_order(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps({"step": i}) for i in range(3)))
    assert [row["step"] for row in page.read_metrics(str(tmp_path))] == [0, 1, 2]
    assert page.read_metrics(str(tmp_path / "none")) == []


def test_a_strip_of_a_photograph_still_has_a_thumbnail(tmp_path: Path) -> None:
    Image.new("RGB", (6000, 12)).save(tmp_path / "strip.png")
    assert pictures.photograph(str(tmp_path / "strip.png")).url.startswith("data:image/jpeg")


def test_names_that_begin_alike_keep_their_own_rows_of_the_confusion_matrix() -> None:
    names = ["x" * 40 + "a", "x" * 40 + "b"]
    heatmap = people.confusion({"people": names, "confusion": [[0, 0, 3], [1, 0, 1], [1, 1, 2]]}).data[0]
    assert len(set(heatmap.x)) == len(set(heatmap.y)) == 2


def test_numbers_of_pairs_alone_make_a_page_of_their_own(config: page.ReportConfig, tmp_path: Path) -> None:
    report = storage.read_json(config.report)
    kept = ("format", "config", "embeddings", "verification", "leakage", "chosen_on", "versions")
    counts = {"listed": 3000, "scored": 2900, "excluded_for_leakage": 100, "photographs": 9}
    pairs = counts | {"photographs_without_face": 7, "rule": "they count"}
    alone = {name: report[name] for name in kept} | {"pairs": pairs}
    alone |= dict.fromkeys(("run", "alignment", "label_conflicts"))
    storage.write_json(f"{tmp_path}/report.json", alone)
    changed = replace(config, report=f"{tmp_path}/report.json", out=f"{tmp_path}/report.html")
    text = Path(page.write_report(changed)).read_text()
    assert "3000 pairs listed, 2900 scored" in text
    assert "chart-roc" in text


def test_embeddings_of_another_model_than_the_reports_are_refused(
    config: page.ReportConfig, tmp_path: Path
) -> None:
    report = storage.read_json(config.report) | {"embeddings": {"trained": "model-z"}}
    storage.write_json(f"{tmp_path}/report.json", report)
    with pytest.raises(MismatchError, match=r"model-a .*model-z.*--embeddings"):
        page.write_report(replace(config, report=f"{tmp_path}/report.json"))


def test_the_run_is_the_reports_own(config: page.ReportConfig, html: str, tmp_path: Path) -> None:
    by_itself = page.write_report(replace(config, run=None, out=f"{tmp_path}/report.html"))
    assert Path(by_itself).read_text().count("chart-loss") == html.count("chart-loss") > 0
    run = storage.read_json(f"{config.run}/run.json")
    storage.write_json(f"{tmp_path}/other/run.json", run | {"config": {"seed": 1}})
    with pytest.raises(MismatchError, match=r"other is not the run .*--run"):
        page.write_report(replace(config, run=f"{tmp_path}/other"))


def test_what_would_run_a_program_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("ran Ghostscript"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n"
    assert pictures.picture(eps).missing == "not readable as an image"


def test_the_map_puts_faces_of_one_person_together() -> None:
    """Twelve people, far apart: each face's nearest other on the map is of its own person."""
    person = np.repeat(np.arange(PEOPLE), EACH)
    vectors = np.eye(128, dtype=np.float32)[person] + np.random.default_rng(0).normal(0, 0.02, (72, 128))
    places = people.plane(vectors.astype(np.float32))
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (person[apart.argmin(axis=1)] == person).all()


def test_confusion_of_a_thousand_people_is_cut_to_the_most_confused() -> None:
    names = [f"person {i}" for i in range(1000)]
    triples = [[i, i, 5] for i in range(1000)] + [[i, i + 1, 40 - i] for i in range(30)]
    heatmap = people.confusion({"people": names, "confusion": triples}).data[0]
    assert len(heatmap.x) == people.MOST_CONFUSED
    assert heatmap.z[0][1] == 40
