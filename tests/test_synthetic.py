"""Drawn faces are faces to MTCNN, the same for the same seed, and other people for other identities."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN

from facerec.errors import ConfigError
from facerec.synthetic import PHOTOGRAPH, SyntheticConfig, landmarks, render, write_collection

SMALL = SyntheticConfig(identities=2, photographs=2, side=64)


def test_mtcnn_finds_drawn_faces_with_their_landmarks_where_they_were_drawn() -> None:
    torch.set_num_threads(1)
    detector = MTCNN(keep_all=True, device="cpu")
    errors = []
    for identity in range(100, 130):
        for photograph in range(2):
            _, _, found = detector.detect(render(identity, photograph), landmarks=True)
            if found is not None:
                drawn = landmarks(identity, photograph)
                distance = np.linalg.norm(np.array(found[0], float) - drawn, axis=1)
                errors.append(distance / np.linalg.norm(drawn[0] - drawn[1]))
    assert len(errors) >= 57, f"MTCNN found {len(errors)} of 60"
    assert np.median(errors) < 0.12, "median landmark error, in interocular distances"


def test_a_photograph_is_the_same_bytes_for_the_same_arguments() -> None:
    assert np.array_equal(render(3, 5), render(3, 5))


def test_a_photograph_is_rgb_uint8_of_the_side_that_was_asked() -> None:
    drawn = render(0, 0, side=96)
    assert drawn.shape == (96, 96, 3)
    assert drawn.dtype == np.uint8


@pytest.mark.parametrize("other", [(3, 6, 0), (4, 5, 0), (3, 5, 1)], ids=["photograph", "identity", "seed"])
def test_another_photograph_identity_or_seed_is_another_picture(other: tuple[int, int, int]) -> None:
    identity, photograph, seed = other
    assert not np.array_equal(render(3, 5), render(identity, photograph, seed=seed))


def test_a_face_is_the_persons_own_when_the_camera_is_held_still(monkeypatch: pytest.MonkeyPatch) -> None:
    still = {name: ((low + high) / 2,) * 2 for name, (low, high) in PHOTOGRAPH.items()}
    monkeypatch.setattr("facerec.synthetic.PHOTOGRAPH", still)
    assert np.array_equal(landmarks(3, 0), landmarks(3, 7))
    assert np.abs(landmarks(3, 0) - landmarks(4, 0)).max() > 1


def test_a_second_run_keeps_every_photograph_that_is_there(tmp_path: Path) -> None:
    assert write_collection(tmp_path, SMALL) == 4
    kept, lost = sorted(tmp_path.rglob("*.jpg"))[:2]
    before, again = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    assert write_collection(tmp_path, SMALL) == 1
    assert (kept.stat().st_mtime_ns, lost.read_bytes()) == (before, again)


def test_a_written_photograph_lies_under_its_person_and_looks_like_the_rendered_one(tmp_path: Path) -> None:
    write_collection(tmp_path, SMALL)
    read = cv2.imread(str(tmp_path / "person_0001" / "person_0001_0001.jpg"), cv2.IMREAD_COLOR_RGB)
    assert read is not None
    assert np.abs(read.astype(float) - render(1, 1, side=64)).mean() < 4


def test_a_run_that_dies_while_writing_leaves_no_photograph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr("facerec.synthetic.os.replace", die)
    with pytest.raises(OSError, match="power cut"):
        write_collection(tmp_path, SMALL)
    assert not list(tmp_path.rglob("*.jpg"))


@pytest.mark.parametrize(
    ("flag", "value"), [("identities", 0), ("photographs", 0), ("side", 63), ("seed", -1)]
)
def test_a_number_out_of_range_is_one_line_with_the_number_and_the_flag(flag: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{value}.*--{flag}"):
        SyntheticConfig(**{flag: value})
