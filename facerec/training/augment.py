"""Changes of a training face that leave the person the same. Pure: randomness is passed in."""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from facerec.errors import ConfigError
from facerec.models.images import resize

DRAWS = 20
"""Random numbers a face."""

COARSEST = 0.25
"""Fraction of the side that the lowest resolution has; between it and 1 all are as likely."""
WIDEST_BLUR = 0.02
"""Largest standard deviation of the blur, as a fraction of the side."""
LARGEST_PATCH = 0.5
"""Of the side, of a patch that hides a part of the face; the smallest is a fifth of that."""

Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far faces are changed; zeros leave them as they are."""

    flip: float = 0.5
    """Probability of mirroring left and right."""
    crop: float = 0.1
    """Largest fraction of the side cut away."""
    rotation: float = 0.0
    """Largest turn, in degrees."""
    brightness: float = 0.2
    """Largest change of brightness, as a fraction of white."""
    contrast: float = 0.2
    """Largest relative change of contrast."""
    colour: float = 0.0
    """Largest relative change of each channel, apart from the others."""
    grey: float = 0.05
    """Probability of dropping the colour."""
    blur: float = 0.0
    """Probability of a Gaussian blur, of up to 2 % of the side."""
    low_resolution: float = 0.0
    """Probability of shrinking to as little as a quarter of the side, and back."""
    occlusion: float = 0.0
    """Probability of hiding a patch, a tenth to a half of the side wide and high (Zhong et al. 2020, random erasing)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), 45 if field.name == "rotation" else 1
            if not 0 <= value <= most:
                raise ConfigError(
                    f"{field.name} is {value}; choose from 0 to {most} (--augment.{field.name})"
                )
        if self.crop > 0.5:
            raise ConfigError(f"crop is {self.crop}; more than half a face is none (--augment.crop)")


def augment(image: Image, side: int, config: AugmentConfig, drawn: NDArray[np.float64]) -> Image:
    """A changed face, RGB uint8 [side, side, 3], of an RGB uint8 [h, w, 3].

    ``drawn`` are DRAWS numbers from 0 to 1, whatever the config, so that one setting changed moves no other draw.
    """
    flip, size, x, y, turn, light, contrast, *gains, grey = drawn[:11]
    blur, sigma, low, coarse, hide, *patch = drawn[11:]
    face = resize(_crop(image, 1 - config.crop * size, x, y), side)
    if config.rotation:
        face = _turned(face, config.rotation * (2 * turn - 1))
    if flip < config.flip:
        face = np.asarray(cv2.flip(face, 1), np.uint8)
    face = _relight(
        face,
        config.brightness * (2 * light - 1),
        1 + config.contrast * (2 * contrast - 1),
        1 + config.colour * (2 * np.array(gains) - 1),
    )
    if grey < config.grey:
        face = np.asarray(cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    if low < config.low_resolution:
        face = resize(resize(face, max(1, round(side * (COARSEST + (1 - COARSEST) * coarse)))), side)
    if blur < config.blur:
        face = np.asarray(cv2.GaussianBlur(face, (0, 0), max(side * WIDEST_BLUR * sigma, 0.1)), np.uint8)
    return _hidden(face, *patch) if hide < config.occlusion else face


def _crop(image: Image, fraction: float, x: float, y: float) -> Image:
    height, width = image.shape[:2]
    rows, columns = round(height * fraction), round(width * fraction)
    top, left = round((height - rows) * y), round((width - columns) * x)
    return image[top : top + rows, left : left + columns]


def _turned(face: Image, degrees: float) -> Image:
    """Turned about its centre; what comes in at the corners is what lies beside them, mirrored."""
    side = len(face)
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), degrees, 1.0)
    return np.asarray(cv2.warpAffine(face, matrix, (side, side), borderMode=cv2.BORDER_REFLECT), np.uint8)


def _relight(face: Image, brightness: float, contrast: float, gains: NDArray[np.float64]) -> Image:
    """Contrast around mid grey, then brightness, then each channel's gain, by a table of 256 values a channel."""
    values = (np.arange(256) - 127.5) * contrast + 127.5 + 255 * brightness
    table = np.clip(np.rint(values[:, None] * gains), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(face, table[None]), np.uint8)


def _hidden(face: Image, width: float, height: float, x: float, y: float) -> Image:
    """A patch of the face's mean colour over a part of it."""
    side = len(face)
    columns, rows = (max(1, round(side * LARGEST_PATCH * (0.2 + 0.8 * part))) for part in (width, height))
    left, top = round((side - columns) * x), round((side - rows) * y)
    face = face.copy()
    face[top : top + rows, left : left + columns] = cv2.mean(face)[:3]
    return face
