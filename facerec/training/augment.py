"""Small changes of a training face that leave the person the same. Pure: randomness is passed in."""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from facerec.errors import ConfigError
from facerec.models.images import resize

DRAWS = 8
"""Random numbers a face."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far faces are changed; zeros leave them as they are."""

    flip: float = 0.5
    """Probability of mirroring left and right."""
    crop: float = 0.1
    """Largest fraction of the side cut away."""
    brightness: float = 0.2
    """Largest change of brightness, as a fraction of white."""
    contrast: float = 0.2
    """Largest relative change of contrast."""
    grey: float = 0.05
    """Probability of dropping the colour."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{field.name} is {value}; choose from 0 to 1 (--augment.{field.name})")
        if self.crop > 0.5:
            raise ConfigError(f"crop is {self.crop}; more than half a face is none (--augment.crop)")


def augment(
    image: NDArray[np.uint8], side: int, config: AugmentConfig, drawn: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """A changed face, RGB uint8 [side, side, 3], of an RGB uint8 [h, w, 3].

    ``drawn`` are DRAWS numbers from 0 to 1, whatever the config, so that one setting changed moves no other draw.
    """
    flip, size, x, y, light, contrast, grey, _ = drawn
    face = resize(_crop(image, 1 - config.crop * size, x, y), side)
    if flip < config.flip:
        face = np.ascontiguousarray(face[:, ::-1])
    if grey < config.grey:
        face = np.asarray(cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    return _relight(face, config.brightness * (2 * light - 1), 1 + config.contrast * (2 * contrast - 1))


def _crop(image: NDArray[np.uint8], fraction: float, x: float, y: float) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    rows, columns = round(height * fraction), round(width * fraction)
    top, left = round((height - rows) * y), round((width - columns) * x)
    return image[top : top + rows, left : left + columns]


def _relight(face: NDArray[np.uint8], brightness: float, contrast: float) -> NDArray[np.uint8]:
    """Contrast around mid grey, then brightness, by a table of 256 values."""
    table = (np.arange(256) - 127.5) * contrast + 127.5 + 255 * brightness
    return np.asarray(np.clip(np.rint(table), 0, 255).astype(np.uint8)[face], np.uint8)
