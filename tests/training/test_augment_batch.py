"""A whole micro-batch is changed as `augment` changes each face: its rectangles, its order, its pixels but for rounding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facerec import synthetic
from facerec.publish import Dataset
from facerec.training import augment_batch as batched
from facerec.training import loop
from facerec.training.augment import COARSEST, DRAWS, AugmentConfig, augment
from facerec.training.augment_batch import augment_batch, augmented
from facerec.training.batchnorm import calibrate
from facerec.training.config import TrainConfig
from facerec.training.fit import train
from facerec.training.step import Forward, descend
from tests.support.dispatch import Dispatched
from tests.support.faces import write_faces
from tests.training.test_augment import NOTHING
from tests.training.test_loop import config_of

STORED = 224
IMFDB = {
    **{"flip": 0.5, "crop": 0.1, "rotation": 10, "brightness": 0.2, "contrast": 0.2, "colour": 0.1},
    **{"grey": 0.05, "blur": 0.1, "low_resolution": 0.2, "occlusion": 0.2},
}
"""The settings of jobs/presets/imfdb.yaml."""
OFTEN = {**IMFDB, "grey": 0.4, "blur": 0.7, "low_resolution": 0.7, "occlusion": 0.7}
"""The same, with faces that get several of the effects that are rare."""
EFFECTS: dict[str, tuple[dict[str, float], float, int]] = {
    "nothing": ({}, 0.001, 1),
    "flip": ({"flip": 0.5}, 0.001, 1),
    "crop": ({"crop": 0.1}, 0.14, 1),
    "half": ({"crop": 0.5}, 0.14, 1),
    "rotation": ({"rotation": 10}, 0.001, 1),
    "flip and rotation": ({"flip": 0.5, "rotation": 45}, 0.001, 1),
    "light": ({"brightness": 0.2, "contrast": 0.2}, 0.001, 1),
    "clipped light": ({"brightness": 1, "contrast": 1, "colour": 1}, 0.001, 1),
    "grey": ({"grey": 0.5}, 0.001, 1),
    "low resolution": ({"low_resolution": 0.7}, 0.22, 1),
    "blur": ({"blur": 0.7}, 0.03, 1),
    "occlusion": ({"occlusion": 0.7}, 0.001, 1),
    "imfdb": (IMFDB, 0.2, 2),
    "all": (OFTEN, 0.25, 2),
}
"""Settings, and how far a pixel may be from that of `augment` in grey levels: on average over all, and at most.

OpenCV's linear resize and its blur round in fixed point, and low resolution rounds once between shrinking and enlarging.
"""


@pytest.fixture(scope="module")
def faces() -> NDArray[np.uint8]:
    """Drawn faces, uint8 [20, 224, 224, 3]; they fill the picture as aligned ones do."""
    drawn = [synthetic.render(number, 0, side=250)[45:205, 45:205] for number in range(20)]
    return np.stack([cv2.resize(face, (STORED, STORED)) for face in drawn]).astype(np.uint8)


def draws(count: int, seed: int = 1) -> NDArray[np.float64]:
    return np.random.default_rng(seed).random((count, DRAWS))


def changed(images: NDArray[np.uint8], drawn: NDArray[np.float64], side: int, settings: Any) -> Any:
    config = AugmentConfig(**{**NOTHING, **settings})
    return augment_batch(torch.from_numpy(images), torch.from_numpy(drawn), side, config).numpy()


def differences(images: NDArray[np.uint8], side: int, settings: Any, seed: int = 1) -> NDArray[np.int64]:
    """Absolute, in grey levels, [n, side, side, 3]."""
    drawn, config = draws(len(images), seed), AugmentConfig(**{**NOTHING, **settings})
    expected = [augment(face, side, config, numbers) for face, numbers in zip(images, drawn, strict=True)]
    return np.abs(changed(images, drawn, side, settings).astype(np.int64) - np.stack(expected))


@pytest.mark.parametrize("side", [224, 112, 64])
@pytest.mark.parametrize("effect", EFFECTS)
def test_faces_are_changed_as_one_by_one(faces: NDArray[np.uint8], effect: str, side: int) -> None:
    settings, mean, most = EFFECTS[effect]
    found = differences(faces, side, settings)
    assert found.mean() <= mean
    assert found.max() <= most


@pytest.mark.parametrize("stored", [97, 160])
def test_faces_are_enlarged_as_one_by_one(faces: NDArray[np.uint8], stored: int) -> None:
    """Also where some crops shrink and some are enlarged, to sides that divide by nothing."""
    small = np.stack([cv2.resize(face, (stored, stored)) for face in faces]).astype(np.uint8)
    found = differences(small, 131, {"crop": 0.3, "flip": 0.5, "rotation": 10})
    assert found.mean() <= 0.2
    assert found.max() <= 1


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_changed_as_one_by_one(seed: int) -> None:
    """Where neighbours have nothing in common, a rectangle that is off by one pixel would show as 80 grey levels."""
    noise = np.random.default_rng(seed).integers(0, 256, (32, 48, 48, 3)).astype(np.uint8)
    found = differences(noise, 40, {**OFTEN, "crop": 0.4, "rotation": 45}, seed)
    assert found.mean() <= 0.25
    assert np.quantile(found.max(axis=(1, 2, 3)), 0.9) <= 3


def test_a_face_at_its_side_is_returned_as_it_is(faces: NDArray[np.uint8]) -> None:
    assert np.array_equal(changed(faces, draws(len(faces)), STORED, {}), faces)


@pytest.mark.parametrize("side", [224, 64])
def test_equal_draws_give_equal_pixels_in_any_batch(faces: NDArray[np.uint8], side: int) -> None:
    drawn = draws(len(faces))
    whole = changed(faces, drawn, side, OFTEN)
    order = np.random.default_rng(0).permutation(len(faces))
    assert np.array_equal(changed(faces[order], drawn[order], side, OFTEN), whole[order])
    for part in (slice(0, 1), slice(3, 5), slice(7, 20)):
        assert np.array_equal(changed(faces[part], drawn[part], side, OFTEN), whole[part])


def test_the_host_does_not_wait_and_launches_few_operations(faces: NDArray[np.uint8]) -> None:
    """168 for all stages, whatever the number of faces; a stage that is left out launches none."""
    images, drawn = torch.from_numpy(faces), torch.from_numpy(draws(len(faces)))
    for settings, most in ((OFTEN, 170), ({}, 2), ({"crop": 0.1, "flip": 0.5}, 40), ({"occlusion": 0.2}, 25)):
        with Dispatched() as counted:
            augment_batch(images, drawn, STORED, AugmentConfig(**{**NOTHING, **settings}))
        assert sorted(counted.waits) == []
        assert counted.launches <= most


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_as_one_graph(faces: NDArray[np.uint8], backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(augment_batch, backend=backend, fullgraph=True)
    images, drawn, config = (
        torch.from_numpy(faces),
        torch.from_numpy(draws(len(faces))),
        AugmentConfig(**OFTEN),
    )
    assert torch.equal(compiled(images, drawn, 64, config), augment_batch(images, drawn, 64, config))


def test_autocast_of_the_caller_does_not_coarsen_the_pixels(faces: NDArray[np.uint8]) -> None:
    expected = changed(faces, draws(len(faces)), 64, OFTEN)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(changed(faces, draws(len(faces)), 64, OFTEN), expected)


@pytest.mark.parametrize("effect", ["crop", "low resolution", "blur", "imfdb", "all"])
def test_products_in_half_precision_move_pixels_by_one_grey_level_at_most(
    faces: NDArray[np.uint8], effect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU multiplies in float16."""
    settings, mean, most = EFFECTS[effect]
    monkeypatch.setattr(batched, "_kind", lambda _device: torch.float16)
    found = differences(faces, 64, settings)
    assert found.mean() <= mean + 0.06
    assert found.max() <= most + 1


def test_white_stays_white_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of a shrunk and enlarged face that add up to 1.0008 made 256 of 255, which is black in 8 bits."""
    monkeypatch.setattr(batched, "_kind", lambda _device: torch.float16)
    lengths = torch.arange(56, 225)
    drawn = torch.zeros(len(lengths), DRAWS, dtype=torch.float64)
    drawn[:, 14] = (lengths / 224 - COARSEST) / (1 - COARSEST)
    white = torch.full((len(lengths), 224, 224, 3), 255, dtype=torch.uint8)
    only = AugmentConfig(flip=0, crop=0, brightness=0, contrast=0, grey=0, low_resolution=1)
    assert augment_batch(white, drawn, 224, only).min() >= 254


def test_a_share_is_augmented_a_micro_batch_at_a_time(
    faces: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, drawn, config = (
        torch.from_numpy(faces),
        torch.from_numpy(draws(len(faces))),
        AugmentConfig(**OFTEN),
    )
    seen: list[int] = []

    def counted(part: Tensor, *rest: Any) -> Tensor:
        seen.append(len(part))
        return augment_batch(part, *rest)

    monkeypatch.setattr(batched, "augment_batch", counted)
    found = augmented(images, drawn, 64, config, rows=5, device=torch.device("cpu"))
    assert seen == [5, 5, 5, 5]
    assert torch.equal(found, augment_batch(images, drawn, 64, config))


def test_a_run_that_augments_on_its_device_trains_and_calibrates_on_the_same_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is this CPU."""
    dataset = write_faces(tmp_path / "faces", 12, 5, side=112)
    plain, late = (
        shown(dataset, tmp_path / str(on_gpu), monkeypatch, on_gpu=on_gpu) for on_gpu in (False, True)
    )
    assert [images.shape for images in late[:3]] == [(32, 32, 32, 3)] * 3
    assert len(late) == len(plain) > 6
    for ours, theirs in zip(late, plain, strict=True):
        assert (ours.float() - theirs.float()).abs().mean() <= 0.25


def shown(dataset: Dataset, run: Path, monkeypatch: pytest.MonkeyPatch, *, on_gpu: bool) -> list[Tensor]:
    """Grey levels of each step of a run, and then of each batch of its calibration."""
    trained: list[Tensor] = []
    calibrated: list[Tensor] = []
    original = descend

    def kept(model: nn.Module, images: Tensor, *rest: Any, **named: Any) -> Forward:
        trained.append(images.clone())
        return original(model, images, *rest, **named)

    def calibrate_and_keep(network: nn.Module, batches: Iterator[Tensor]) -> None:
        calibrated.extend(batches)
        calibrate(network, iter(calibrated))

    with monkeypatch.context() as patched:
        patched.setattr(TrainConfig, "augments_on_gpu", on_gpu)
        patched.setattr(loop, "descend", kept)
        patched.setattr(loop, "calibrate", calibrate_and_keep)
        train(config_of(dataset, run, steps=3, augment=AugmentConfig(**OFTEN)))
    return trained + [(batch + 1) * 127.5 for batch in calibrated]
