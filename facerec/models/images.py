"""Pixels as the network takes them: the one place where JPEG bytes become its input, for training and embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from facerec.errors import DatasetError

if TYPE_CHECKING:
    from torch import Tensor  # loader processes import this module, and have no use for torch


REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
"""OpenCV's flags by the factor of reduction, the largest first."""


def decode_jpeg(data: bytes, least: int | None = None) -> NDArray[np.uint8]:
    """RGB uint8 [h, w, 3]. Raises DatasetError if the bytes are not an image.

    With ``least`` the image may come at a half, a quarter or an eighth of its size, as long as both sides have ``least``
    pixels. The decoder then computes fewer pixels: 230 us instead of 330 us for an aligned face of 224 px at a half. The
    pixels differ from those of a full decode that is averaged over areas, by 0.3 grey levels on average at 112 px, and by
    0.6 (at most 1.9 in one of 120 faces) after a further resize to 64 px.

    Aligned faces have no orientation tag, and one would be ignored: they are upright by construction.
    """
    flags = _flag(data, least) | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise DatasetError(f"a face of {len(data)} bytes cannot be decoded; run jobs/align.py again")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _flag(data: bytes, least: int | None) -> int:
    """The flag of the largest reduction that leaves ``least`` pixels."""
    side = 0 if least is None else _shorter_side(data)
    return next(
        (flag for factor, flag in REDUCED.items() if least and side >= factor * least), cv2.IMREAD_COLOR
    )


def _shorter_side(data: bytes) -> int:
    """In pixels, from the frame header of a JPEG (ITU T.81, B.2.2); 0 if there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return min(
                int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            )
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def resize(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The image at side x side pixels, averaged over areas when it shrinks (no aliasing)."""
    if image.shape[:2] == (side, side):
        return image
    shrinks = min(image.shape[:2]) >= side
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (side, side), interpolation=method), np.uint8)


def to_input(images: NDArray[np.uint8], side: int) -> Tensor:
    """RGB uint8 [n, h, w, 3] to float32 [n, 3, side, side] in [-1, 1]."""
    import torch

    return normalize(torch.from_numpy(np.stack([resize(image, side) for image in images])))


def normalize(pixels: Tensor) -> Tensor:
    """RGB uint8 [n, side, side, 3] to float32 [n, 3, side, side] in [-1, 1], channels last in memory: x / 127.5 - 1."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
