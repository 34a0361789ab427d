"""Straightening: the least-squares similarity transform from five landmarks to a fixed template."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

ARCFACE_112: NDArray[np.float64] = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Left eye, right eye, nose, mouth left and right in a 112 x 112 crop (Deng et al., ArcFace, 2019)."""


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 2 x 3 matrix that takes ``source`` [n, 2] closest to ``target`` [n, 2] by rotation, scale and shift.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991, eq. 39-43:
    no reflection, also for mirrored points. Coinciding source points raise ValueError.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    source_centered, target_centered = source - source_mean, target - target_mean
    variance = (source_centered**2).sum() / len(source)
    if variance < 1e-12:
        raise ValueError("all source points coincide")
    u, scales, vt = np.linalg.svd(target_centered.T @ source_centered / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ np.diag(signs) @ vt
    scale = (scales * signs).sum() / variance
    shift = target_mean - scale * rotation @ source_mean
    return np.hstack([scale * rotation, shift[:, None]])


def straighten(image: NDArray[np.uint8], landmarks: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    """The aligned face, RGB uint8 [side, side, 3], from an image [h, w, 3] and landmarks [5, 2] in its pixels.

    Three in four faces of large photographs shrink more than twofold: they are averaged down first, as bilinear
    sampling alone would alias. Pixel centres lie at integers plus a half in both frames.
    """
    matrix = similarity(landmarks + 0.5, ARCFACE_112 * (side / 112))
    shrink = 1 / np.hypot(matrix[0, 0], matrix[1, 0])
    if shrink >= 2:
        image, matrix = _averaged(image, landmarks, matrix, factor=int(shrink))
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    return cv2.warpAffine(
        image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    ).astype(np.uint8)


def _averaged(
    image: NDArray[np.uint8], landmarks: NDArray[np.float64], matrix: NDArray[np.float64], factor: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Cut out what the face needs, average factor x factor pixels, and fit the matrix to the smaller image."""
    center, reach = landmarks.mean(axis=0), 4 * np.ptp(landmarks, axis=0).max()
    height, width = image.shape[:2]
    x0, y0 = (int(max(value, 0)) for value in center - reach)
    x1, y1 = (int(min(value, top)) for value, top in zip(center + reach + 1, (width, height), strict=True))
    x1, y1 = x0 + max((x1 - x0) // factor, 1) * factor, y0 + max((y1 - y0) // factor, 1) * factor
    cut = image[y0:y1, x0:x1]
    small = cv2.resize(
        cut, (max(cut.shape[1] // factor, 1), max(cut.shape[0] // factor, 1)), interpolation=cv2.INTER_AREA
    )
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ [x0, y0]
    moved[:, :2] *= factor
    return small.astype(np.uint8), moved
