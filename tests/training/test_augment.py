"""Augmentation: zeros change nothing, the same numbers change the same, and each change is the one it says."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from facerec.errors import ConfigError
from facerec.training.augment import DRAWS, AugmentConfig, augment

NOTHING: dict[str, Any] = {"flip": 0, "crop": 0, "brightness": 0, "contrast": 0, "grey": 0}
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)


def changed(image: Any, seed: int = 1, **settings: float) -> Any:
    drawn = np.random.default_rng(seed).random(DRAWS)
    return augment(image, len(image), AugmentConfig(**{**NOTHING, **settings}), drawn)


def test_zeros_change_nothing_and_the_same_numbers_change_the_same() -> None:
    assert np.array_equal(changed(NOISE), NOISE)
    everything = {
        "crop": 0.2,
        "rotation": 20.0,
        "colour": 0.2,
        "blur": 1.0,
        "low_resolution": 1.0,
        "occlusion": 1.0,
    }
    one, same, other = (changed(NOISE, seed, **everything) for seed in (1, 1, 2))
    assert one.shape == NOISE.shape
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.array_equal(changed(NOISE, flip=1), NOISE[:, ::-1])


def test_a_face_is_resized_to_the_side_asked_for() -> None:
    assert augment(NOISE, 24, AugmentConfig(), np.random.default_rng(0).random(DRAWS)).shape == (24, 24, 3)


@pytest.mark.parametrize("seed", range(5))
def test_a_turn_keeps_the_centre_and_no_point_goes_farther_than_the_largest_angle(seed: int) -> None:
    dot = np.zeros((65, 65, 3), np.uint8)
    cv2.circle(dot, (32 + 20, 32), 2, (255, 255, 255), -1)
    turned = changed(dot, seed, rotation=30.0)[..., 0].astype(float)
    rows, columns = np.nonzero(turned > 60)
    y, x = rows.mean() - 32, columns.mean() - 32
    assert np.hypot(x, y) == pytest.approx(20, abs=0.7)
    assert abs(np.degrees(np.arctan2(y, x))) <= 30.5


def test_blur_and_low_resolution_take_detail_and_leave_the_mean() -> None:
    detail = float(cv2.Laplacian(NOISE, cv2.CV_64F).std())
    for setting in ("blur", "low_resolution"):
        for seed in range(3):
            soft = changed(NOISE, seed, **{setting: 1.0})
            assert float(cv2.Laplacian(soft, cv2.CV_64F).std()) < 0.8 * detail
            assert soft.mean() == pytest.approx(NOISE.mean(), abs=2)


@pytest.mark.parametrize("seed", range(5))
def test_occlusion_hides_one_rectangle_of_the_stated_size_and_nothing_else(seed: int) -> None:
    differs = (changed(NOISE, seed, occlusion=1.0) != NOISE).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert 0.1 * 64 - 1 <= min(height, width) <= max(height, width) <= 0.5 * 64 + 1
    assert differs.sum() >= 0.9 * height * width, "but for pixels that had the mean colour already"


def test_colour_moves_the_channels_apart_by_no_more_than_the_setting() -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    gains = changed(grey, colour=0.2).mean(axis=(0, 1)) / 128
    assert np.ptp(gains) > 0.01
    assert np.abs(gains - 1).max() <= 0.2 + 1 / 128
    without = changed(NOISE, colour=0.2, grey=1)
    assert np.array_equal(without[..., 0], without[..., 1])


@pytest.mark.parametrize("wrong", [{"flip": 2.0}, {"crop": 0.6}, {"brightness": -1.0}, {"rotation": 60.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--augment"):
        AugmentConfig(**wrong)


def test_the_hidden_patch_has_the_mean_colour_in_the_bits_that_numpy_gives() -> None:
    for seed in range(100):
        random = np.random.default_rng(seed)
        face = random.integers(0, 256, (int(random.integers(32, 225)),) * 2 + (3,)).astype(np.uint8)
        hidden, mean = changed(face, seed, occlusion=1.0), np.zeros(3, np.uint8)
        mean[:] = face.mean(axis=(0, 1))
        assert (hidden != face).any()
        assert np.array_equal(np.unique(hidden[(hidden != face).any(axis=2)], axis=0), mean[None])
