"""Alignment: sources, geometry, the subject, and the pipeline's promise that nothing is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from facerec import decoding, publish, storage, synthetic
from facerec.alignment import geometry, sources
from facerec.alignment.config import AlignConfig
from facerec.alignment.detector import PADDED, Detections, Detector, _padded, _zoom
from facerec.alignment.pipeline import align_source, plan
from facerec.alignment.subject import choose_subject
from facerec.errors import MismatchError, SourceError
from facerec.synthetic import SyntheticConfig, write_collection


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_the_first_folder_is_the_identity_at_any_depth_and_other_files_are_counted(tmp_path: Path) -> None:
    touch(
        tmp_path, "Ada/Film/images/x.jpg", "Ada/Film/Film.txt", "Bo B/Bo_1.JPG", "Bo B/.hidden.jpg", "top.png"
    )
    listing = sources.list_photographs(str(tmp_path))
    rows = [(Path(row["source_uri"]).name, row["identity"]) for row in listing.photographs.to_pylist()]
    assert rows == [("x.jpg", "Ada"), ("Bo_1.JPG", "Bo B"), ("top.png", None)]
    assert listing.ignored == 2


def test_a_manifest_names_photographs_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri,identity,version\na/1.jpg,007,1\ns3://bucket/2.jpg,,\n")
    rows = sources.list_photographs(str(tmp_path / "list.csv")).photographs.to_pylist()
    assert rows[0] == {"source_uri": str(tmp_path / "a/1.jpg"), "identity": "007", "source_version": "1"}
    assert rows[1] == {"source_uri": "s3://bucket/2.jpg", "identity": None, "source_version": None}


def test_the_version_of_a_photograph_is_size_and_time_or_what_the_manifest_says(tmp_path: Path) -> None:
    touch(tmp_path, "Ada/1.jpg")
    found = (tmp_path / "Ada/1.jpg").stat()
    wanted = f"{found.st_size}-{found.st_mtime_ns}"
    (tmp_path / "list.csv").write_text("uri,identity\nAda/1.jpg,Ada\nAda/2.jpg,Ada\n")
    assert versions(tmp_path) == [wanted]
    assert versions(tmp_path / "list.csv") == [wanted, None]
    (tmp_path / "list.csv").write_text("uri,identity,version\nAda/1.jpg,Ada,007\nAda/2.jpg,Ada,\n")
    assert versions(tmp_path / "list.csv") == ["007", None]
    (tmp_path / "list.csv").write_text("uri,identity,version\n1.jpg,Ada,1\n1.jpg,Ada,2\n")
    with pytest.raises(SourceError, match="in two versions"):
        versions(tmp_path / "list.csv")


def versions(source: Path) -> list[str | None]:
    found: list[str | None] = sources.list_photographs(str(source)).photographs["source_version"].to_pylist()
    return found


def test_links_that_loop_end(tmp_path: Path) -> None:
    touch(tmp_path, "Ada/1.jpg")
    (tmp_path / "Ada" / "again").symlink_to(tmp_path)
    assert sources.list_photographs(str(tmp_path)).photographs.num_rows == 1


def test_a_source_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no photographs"):
        sources.list_photographs(str(tmp_path))


@pytest.mark.parametrize(
    "text, words",
    [
        ("name,who\na,b\n", "uri and identity are needed"),
        ("", "cannot be read"),
        ("uri,identity\n,Ada\n1.jpg,Bo\n", "1 rows without uri"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(SourceError, match=words):
        sources.list_photographs(str(tmp_path / "m.csv"))


def test_the_similarity_is_found_again_and_is_the_best_in_least_squares() -> None:
    rng = np.random.default_rng(0)
    angle, scale, shift = 0.7, 1.9, np.array([5.0, -3.0])
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = rng.normal(size=(5, 2))
    exact = geometry.similarity(points, points @ rotation.T + shift)
    np.testing.assert_allclose(exact, np.hstack([rotation, shift[:, None]]), atol=1e-12)
    target = rng.normal(size=(5, 2))
    # A similarity is linear in (a, b, tx, ty): ordinary least squares is the oracle.
    x, y = points.T
    one, zero = np.ones(5), np.zeros(5)
    design = np.vstack([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, tx, ty = np.linalg.lstsq(design, np.concatenate([target[:, 0], target[:, 1]]), rcond=None)[0]
    np.testing.assert_allclose(geometry.similarity(points, target), [[a, -b, tx], [b, a, ty]], atol=1e-9)


@pytest.mark.parametrize("zoom", [0.5, 1.0, 3.0, 7.3])
def test_landmarks_land_on_the_template(zoom: float) -> None:
    """Dots drawn at the landmarks of a turned, scaled face are found again at the template's points."""
    angle = np.deg2rad(17)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = geometry.ARCFACE_112 * 2 * zoom @ rotation.T + (150 * zoom, 60 * zoom)
    for point, wanted in zip(landmarks, geometry.ARCFACE_112 * 2, strict=True):
        image = np.zeros((int(500 * zoom), int(500 * zoom), 3), np.uint8)
        cv2.circle(
            image,
            np.round(point * 16).astype(int).tolist(),
            int(16 * 6 * zoom),
            (255, 255, 255),
            -1,
            cv2.LINE_AA,
            4,
        )
        weights = geometry.straighten(image, landmarks, 224)[..., 0].astype(float)
        found = (
            np.array([(weights.sum(0) * np.arange(224)).sum(), (weights.sum(1) * np.arange(224)).sum()])
            / weights.sum()
        )
        np.testing.assert_allclose(found, wanted, atol=0.6)


def test_the_policies_choose_the_center_the_largest_and_the_surest() -> None:
    boxes = np.array([[0, 0, 60, 60], [80, 80, 120, 120], [150, 150, 170, 170]], float)
    found = Detections(boxes, np.zeros((3, 5, 2)), np.array([0.8, 0.9, 0.99]))
    assert choose_subject(found, 200, 200, "largest") == 0
    assert choose_subject(found, 200, 200, "center_weighted") == 1
    assert choose_subject(found, 200, 200, "most_confident") == 2


def test_crops_too_tight_for_the_detector_are_found_with_a_border(photographs_of_people: Path) -> None:
    """IMFDB's crops are so tight that MTCNN alone misses one in eight."""
    detector = Detector(20)
    images = [
        decoding.decode(path.read_bytes())
        for path in sorted((photographs_of_people / "imfdb").rglob("*.jpg"))[::9]
    ]
    alone = sum(len(detector.detect(image)) > 0 for image in images)
    found = sum(len(detector.detect_tight(image)) > 0 for image in images)
    assert alone < 0.96 * len(images)
    assert found >= 0.95 * len(images)


def test_a_large_tight_photograph_is_reduced_for_the_second_look_and_its_face_comes_back_in_full_size() -> (
    None
):
    points = synthetic.landmarks(5, 0, side=500)
    center, reach = points.mean(axis=0), np.ptp(points, axis=0).max()
    x0, y0, x1, y1 = np.concatenate([center - reach, center + reach]).astype(int)
    tight = synthetic.render(5, 0, side=500)[y0:y1, x0:x1]
    image = cv2.resize(tight, (1600, 1600), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    detector = Detector(20, 0.05)
    assert not detector.detect(image)
    found = detector.detect_tight(image)
    wanted = (points - [x0, y0]) * 1600 / [x1 - x0, y1 - y0]
    assert np.abs(found.landmarks[0] - wanted).max() < 0.1 * 1600


@pytest.mark.parametrize("shape", [(36, 9), (3000, 3000), (12, 300_000), (160, 20_000)])
@pytest.mark.parametrize("enlarge", [False, True])
def test_the_second_look_is_at_a_few_megapixels_at_most(shape: tuple[int, int], enlarge: bool) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    padded, border = _padded(image, _zoom(image, enlarge))
    assert padded.shape[0] * padded.shape[1] <= 4.1 * PADDED
    assert min(padded.shape[:2]) <= 320 or not enlarge
    assert min(padded.shape[:2]) - 2 * border in (2 * border, 2 * border + 1)


@pytest.mark.parametrize("shape", [(12, 12), (13, 300), (300, 13)])
def test_tiny_and_narrow_images_are_no_crash(shape: tuple[int, int]) -> None:
    assert len(Detector(20).detect_tight(np.zeros((*shape, 3), np.uint8))) == 0


@pytest.mark.usefixtures("ray_local")
def test_photographs_in_are_faces_plus_rejects_and_a_rerun_adds_only_what_is_new(
    tmp_path: Path,
) -> None:
    source, faces = tmp_path / "source", str(tmp_path / "faces")
    write_collection(source, SyntheticConfig(identities=5, photographs=4))
    people = sorted(path for path in source.iterdir())
    (people[0] / "empty.jpg").touch()
    (people[0] / "notes.txt").write_text("no image")
    Image.new("RGB", (100, 100), "blue").save(people[1] / "nobody 'in' it.png")
    shutil.copy(sorted(people[2].glob("*.jpg"))[0], people[2] / "zz copy.jpg")
    shutil.copy(sorted(people[2].glob("*.jpg"))[0], people[3] / "zz wrong name.jpg")
    config = AlignConfig(source=str(source), out=faces, part=6)
    first = align_source(config)
    counts = first.manifest["counts"]
    assert counts["photographs"] == 24
    assert counts["ignored_files"] == 1
    assert counts["image_rejects"].items() >= {"unreadable": 1, "duplicate": 1}.items()
    assert counts["image_rejects"]["no_face"] >= 1
    assert counts["photographs_with_faces"] == counts["faces"] == 24 - sum(counts["image_rejects"].values())
    assert len(first.manifest["label_conflicts"]) == 1
    table = first.read("faces")
    index = first.read("index")
    assert sum(index["rows"].to_pylist()) == table.num_rows == len(set(table["face_id"].to_pylist()))
    for span in index.to_pylist():
        stretch = storage.read_table(first.uri(span["file"]))["identity"].to_pylist()
        at = span["row_group"] * 256 + span["first_row"]
        assert set(stretch[at : at + span["rows"]]) == {span["identity"]}
    aligned = cv2.imdecode(np.frombuffer(table["image"][0].as_py()["bytes"], np.uint8), cv2.IMREAD_COLOR)
    assert aligned.shape == (224, 224, 3)

    before = {path.name: path.stat().st_mtime_ns for path in Path(faces, "parts").iterdir()}
    write_collection(source, SyntheticConfig(identities=6, photographs=4))
    second = align_source(config)
    assert second.generation == 2
    assert second.manifest["counts"]["photographs"] == 28
    assert {name: Path(faces, "parts", name).stat().st_mtime_ns for name in before} == before
    assert set(table["face_id"].to_pylist()) < set(second.read("faces")["face_id"].to_pylist())
    assert publish.open_dataset(faces, "jobs/align.py", generation=1).digest == first.digest
    touch(tmp_path / "other", "Ada/1.jpg", "Ada/2.jpg", "Bo/1.jpg")
    with pytest.raises(MismatchError, match="source is"):
        align_source(AlignConfig(source=str(tmp_path / "other"), out=faces))


def test_a_plan_counts_what_a_run_would_align_and_writes_nothing(tmp_path: Path) -> None:
    touch(tmp_path / "photographs", "Ann/1.jpg", "Ann/2.jpg", "Bob/1.jpg", "Bob/notes.txt")
    said = plan(AlignConfig(source=str(tmp_path / "photographs"), out=str(tmp_path / "faces"), part=2))
    assert said["photographs"] == "3 (1 other files ignored)"
    assert said["identities"] == 2
    assert said["to align"] == "3 photographs in 2 parts of up to 2"
    assert not (tmp_path / "faces").exists()
