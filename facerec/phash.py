"""Perceptual hash: photographs that look the same have hashes that differ in few bits.

The DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010): the signs
of the 8 x 8 lowest frequencies of a 32 x 32 grey image against their median.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def perceptual_hash(image: NDArray[np.uint8]) -> int:
    """64-bit hash of an RGB uint8 image [h, w, 3], as a signed integer (Arrow int64)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    bits = low > np.median(low[1:])  # the first coefficient is the mean brightness and would dominate
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)
