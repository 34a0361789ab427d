"""Arithmetic on boxes as facenet-pytorch's cascade does it, in float32 and to the rounding.

Boxes are float32 [n, 4]: x0, y0, x1, y1. MTCNN is chaotic: a box moved by one pixel moves half the faces that come
of it, so additions stand in the reference's order.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


def suppress(
    boxes: F32, scores: F32, groups: I64, threshold: float, overlap: Literal["union", "smaller"] = "union"
) -> I64:
    """Indices left by non-maximum suppression within each group, ordered by group, then score, then index.

    ``union``: intersection over union, as torchvision's. ``smaller``: intersection over the smaller box, with the
    "+ 1" of inclusive pixels, as the reference has it after O-Net.
    """
    order = np.lexsort((-scores, groups))
    kept = _survivors(boxes[order], groups[order], np.float32(threshold), overlap == "smaller")
    return np.asarray(order[kept], np.int64)


@njit(nogil=True)
def _survivors(boxes, groups, threshold, smaller):  # type: ignore[no-untyped-def]  # pragma: no cover
    """bool [n] of boxes sorted by group and falling score: not overlapped by a better one that survives."""
    one = np.float32(1.0) if smaller else np.float32(0.0)
    zero = np.float32(0.0)
    area = (boxes[:, 2] - boxes[:, 0] + one) * (boxes[:, 3] - boxes[:, 1] + one)
    kept = np.ones(len(boxes), np.bool_)
    for i in range(len(boxes)):
        if not kept[i]:
            continue
        j = i + 1
        while j < len(boxes) and groups[j] == groups[i]:
            if kept[j]:
                width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0]) + one
                height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1]) + one
                common = max(zero, width) * max(zero, height)
                whole = min(area[i], area[j]) if smaller else area[i] + area[j] - common
                kept[j] = not common / whole > threshold
            j += 1
    return kept


def moved(boxes: F32, offsets: F32, inclusive: bool) -> F32:
    """Boxes with each side moved by its offset [n, 4], in box widths and heights (``inclusive``: one pixel more)."""
    sides = boxes[:, 2:] - boxes[:, :2] + np.float32(inclusive)
    return boxes + offsets * np.tile(sides, 2)


def squared(boxes: F32) -> F32:
    """The square about each box's centre with its longer side."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.max(axis=1, keepdims=True) if len(sides) else sides[:, :1]
    corner = boxes[:, :2] + sides * np.float32(0.5) - longer * np.float32(0.5)
    return np.hstack([corner, corner + longer])


def windows(boxes: F32, heights: I64, widths: I64) -> I64:
    """int64 [n, 4]: top, left, bottom, right of the pixels below each box, cut at the photograph's edges.

    The reference counts pixels from 1 and includes the last. Nothing is left where bottom <= top or right <= left.
    """
    x0, y0, x1, y1 = np.trunc(boxes).astype(np.int64).T
    return np.stack(
        [np.maximum(y0, 1) - 1, np.maximum(x0, 1) - 1, np.minimum(y1, heights), np.minimum(x1, widths)],
        axis=1,
    )
