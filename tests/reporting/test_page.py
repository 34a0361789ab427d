"""The page: every number is on it, hostile names stay text, and nothing leaves it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facerec.reporting import figures, page, pictures

HOSTILE = "<script>alert(1)</script>"


def scores(accuracy: float) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "interval": [accuracy - 0.05, accuracy + 0.05],
        "nearest_neighbour": accuracy,
        "train_faces": 10,
        "test_faces": 10,
        "people": [HOSTILE, "Ada </script><b>"],
        "confusion": [[4, 1], [0, 5]],
    }


@pytest.fixture
def html() -> str:
    names = {"trained": 0.9, "untrained": 0.4, "pixels": 0.5}
    report = {
        "identification": {name: scores(value) for name, value in names.items()},
        "verification": {name: {"tar": 0.5} for name in names} | {"pixels": {"tar": None}},
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
        "unseen_people": [HOSTILE],
        "left_out_people": [HOSTILE],
        "run": {
            "config": {"model": HOSTILE},
            "split": {"train": ["x"]},
            "faces": {"digest": "d", "generation": 1},
        },
        "embeddings": {"trained": "model-a", "untrained": "model-b"},
        "versions": {"facerec": "0"},
    }
    metrics = [
        {"step": i, "loss": 0.2, "active_fraction": 1, "d_ap": [0, 1, 2], "d_an": [1, 2, 3]} for i in range(3)
    ]
    face = pictures.data_url(np.zeros((224, 224, 3), np.uint8))
    contact = {
        "identity": HOSTILE,
        "source": f'"{HOSTILE}',
        "confidence": 0.9,
        "photograph": None,
        "face": face,
    }
    reject = {"reason": "no_face", "detail": HOSTILE, "source_uri": f"a/{HOSTILE}.jpg", "photograph": None}
    return page.render(report, metrics, [contact], [reject])


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
    for text in ("12345", "777", "0.900", "0.400", "too few pairs"):
        assert text in html
    assert len(html) < 15_000_000


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="no chromium on this machine to open the page in"
)
def test_a_browser_draws_every_chart_and_runs_no_name(html: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(html)
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    )
    flags += " --disable-component-update --disable-sync --virtual-time-budget=5000 --dump-dom"
    command = [
        "chromium",
        *flags.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        f"file://{tmp_path}/report.html",
    ]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert drawn.count('class="main-svg"') >= 4


def test_a_photograph_that_is_gone_is_said_to_be_missing(tmp_path: Path) -> None:
    assert pictures.photograph(str(tmp_path / "gone.jpg")) is None
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    assert pictures.photograph(str(tmp_path / "bad.jpg")) is None


def test_metrics_come_back_in_order(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps({"step": i}) for i in range(3)))
    assert [row["step"] for row in page.read_metrics(str(tmp_path))] == [0, 1, 2]
    assert page.read_metrics(str(tmp_path / "none")) == []


def test_a_strip_of_a_photograph_still_has_a_thumbnail(tmp_path: Path) -> None:
    pictures.Image.new("RGB", (6000, 12)).save(tmp_path / "strip.png")
    assert str(pictures.photograph(str(tmp_path / "strip.png"))).startswith("data:image/jpeg")


def test_names_that_begin_alike_keep_their_own_rows_of_the_confusion_matrix() -> None:
    people = ["x" * 40 + "a", "x" * 40 + "b"]
    heatmap = figures.confusion({"people": people, "confusion": [[3, 0], [1, 2]]}).data[0]
    assert len(set(heatmap.x)) == len(set(heatmap.y)) == 2
