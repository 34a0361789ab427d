"""The aligner's rows: the subject or every face, a detector or none, and the progress that a job log shows."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from facerec import schema
from facerec.alignment.aligner import Aligner
from facerec.alignment.config import AlignConfig, DetectionConfig
from facerec.alignment.pipeline import align_source
from facerec.errors import MismatchError
from facerec.photographs import as_table
from facerec.progress import Progress, duration
from facerec.synthetic import render
from tests.alignment.test_alignment import touch
from tests.support.gauges import documented


def listed(*paths: Path) -> pa.Table:
    return as_table([str(path) for path in paths], ["Ada"] * len(paths))


def two_faces(path: Path) -> Path:
    """Two drawn people beside each other, the first one larger."""
    large, small = render(1, 0, side=300), render(2, 0, side=180)
    canvas = np.full((300, 480, 3), 128, np.uint8)
    canvas[:, :300], canvas[60:240, 300:] = large, small
    Image.fromarray(canvas).save(path)
    return path


def test_the_subject_is_one_face_and_all_are_all(tmp_path: Path) -> None:
    part = listed(two_faces(tmp_path / "two.png"))
    subject = Aligner(AlignConfig())(part).to_pylist()
    everyone = Aligner(AlignConfig(faces="all"))(part).to_pylist()
    assert [row["reason"] for row in subject] == [None, "not_subject"]
    assert [row["reason"] for row in everyone] == [None, None]
    assert len({row["face_id"] for row in everyone}) == 2
    assert subject[0]["face_id"] in {row["face_id"] for row in everyone}


def test_of_all_faces_the_unsure_ones_are_rejects_and_without_a_sure_one_so_is_the_photograph(
    tmp_path: Path,
) -> None:
    part = listed(two_faces(tmp_path / "two.png"))
    sure = sorted(row["confidence"] for row in Aligner(AlignConfig(faces="all"))(part).to_pylist())
    between = AlignConfig(faces="all", detection=DetectionConfig(min_confidence=float(np.mean(sure))))
    rows = Aligner(between)(part).to_pylist()
    assert sorted(str(row["reason"]) for row in rows) == ["None", "low_confidence"]
    assert next(row for row in rows if row["reason"])["level"] == "face"
    nobody = AlignConfig(faces="all", detection=DetectionConfig(min_confidence=1.0))
    assert [(row["level"], row["reason"]) for row in Aligner(nobody)(part).to_pylist()] == [
        ("image", "low_confidence")
    ]


@pytest.mark.parametrize("shape", [(112, 112), (224, 224), (300, 240)])
def test_without_a_detector_a_crop_is_its_middle_square(tmp_path: Path, shape: tuple[int, int]) -> None:
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8), shape[::-1])
    Image.fromarray(smooth).save(tmp_path / "crop.png")
    (row,) = Aligner(AlignConfig(detector="none"))(listed(tmp_path / "crop.png")).to_pylist()
    side, top = min(shape), (shape[0] - min(shape)) // 2
    assert row["box"] == [0, top, side, top + side]
    assert (row["landmarks"], row["confidence"]) == (None, None)
    seen = cv2.imdecode(np.frombuffer(row["image"]["bytes"], np.uint8), cv2.IMREAD_COLOR_RGB)
    wanted = cv2.resize(smooth[top : top + side], (224, 224), interpolation=cv2.INTER_LINEAR)
    assert np.abs(seen.astype(int) - wanted).mean() < 3


def test_crops_aligned_elsewhere_have_a_contract_of_their_own() -> None:
    ours, theirs = (AlignConfig(detector=name).preprocessing.to_json() for name in ("mtcnn", "none"))  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="detector is"):
        schema.require_same_preprocessing(ours, theirs, "the model", "the faces")


@pytest.mark.usefixtures("ray_local")
def test_a_collection_gives_all_its_faces_without_names_and_each_photograph_once(tmp_path: Path) -> None:
    two_faces(tmp_path / "two.png")
    touch(tmp_path, "sub/broken.jpg")
    Image.fromarray(render(3, 0)).save(tmp_path / "sub" / "one.png")
    uris = [tmp_path / "two.png", tmp_path / "two.png", tmp_path / "sub/broken.jpg", tmp_path / "sub/one.png"]
    names = ["Ada", "Bo", "Cy", "Di"]
    rows = "".join(f"{uri},{name}\n" for uri, name in zip(uris, names, strict=True))
    (tmp_path / "list.csv").write_text("uri,identity\n" + rows)
    config = AlignConfig(source=str(tmp_path / "list.csv"), out=str(tmp_path / "faces"), faces="all")
    dataset = align_source(config)
    assert (
        dataset.manifest["counts"].items()
        >= {"photographs": 3, "photographs_with_faces": 2, "faces": 3, "identities": 0}.items()
    )
    assert dataset.read("faces")["identity"].null_count == 3
    assert dataset.manifest["label_conflicts"] == []


class Written:
    """The last values of gauges."""

    def write(self, numbers: dict[str, float]) -> None:
        self.numbers = numbers


def test_progress_is_a_line_now_and_then_with_rates_and_the_time_to_go(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("facerec.progress.time.monotonic", lambda: now[0])
    gauges = Written()
    progress = Progress("align", 1000, gauges)  # type: ignore[arg-type]
    for _ in range(10):
        now[0] += 2
        progress.add({"photographs": 100, "faces": 90, "rejects": 20})
    progress.say()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "align: 300/1000 photographs, 270 faces, 60 rejects; 50.0 photographs/s, 45.0 faces/s; 14 s to go"
    )
    assert len(lines) == 4
    assert lines[-1].endswith("took 20 s")
    assert gauges.numbers["photographs_left"] == 0
    assert {f"ray_facerec_align_{name}" for name in gauges.numbers} == documented("align")


@pytest.mark.parametrize("seconds, said", [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (12_240, "3.4 h")])
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
