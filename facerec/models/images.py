"""Pixels as the network takes them: the one place where JPEG bytes become its input, for training and embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from facerec.errors import DatasetError

if TYPE_CHECKING:
    from torch import Tensor  # loader processes import this module, and have no use for torch


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """RGB uint8 [h, w, 3]; raises DatasetError where the bytes are no image.

    Aligned faces carry no orientation tag, and one would be ignored: they are upright by construction.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise DatasetError(f"a face of {len(data)} bytes cannot be decoded; run jobs/align.py again")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


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
