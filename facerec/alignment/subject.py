"""Which face of a photograph is the person it is named after. Which one is taken moves LFW by three points."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from facerec.alignment.detector import Detections

Policy = Literal["center_weighted", "largest", "most_confident"]


def choose_subject(found: Detections, height: int, width: int, policy: Policy) -> int:
    """Index of the subject among ``found`` (not empty).

    center_weighted: box area minus twice the squared distance of its centre from the photograph's, in pixels
    (Sandberg's facenet alignment).
    """
    if policy == "most_confident":
        return int(np.argmax(found.confidences))
    area = np.prod(np.maximum(found.boxes[:, 2:] - found.boxes[:, :2], 0), axis=1)
    if policy == "largest":
        return int(np.argmax(area))
    return int(np.argmax(area - 2 * _offsets(found.boxes, height, width)))


def _offsets(boxes: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.asarray(((centers - [width / 2, height / 2]) ** 2).sum(axis=1))
