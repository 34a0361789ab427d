"""facenet-pytorch's MTCNN behind one verb, with its crashes on odd images turned into 'no face'.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks", 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from facenet_pytorch import MTCNN
from numpy.typing import NDArray


@dataclass(frozen=True)
class Detections:
    """Faces of one photograph, most confident first; pixels of the upright photograph."""

    boxes: NDArray[np.float64]
    """[n, 4]: x0, y0, x1, y1; may reach past the photograph's edge."""
    landmarks: NDArray[np.float64]
    """[n, 5, 2]: left eye, right eye, nose, mouth left and right."""
    confidences: NDArray[np.float64]
    """[n], 0 to 1."""

    def __len__(self) -> int:
        return len(self.boxes)


NOTHING = Detections(np.empty((0, 4)), np.empty((0, 5, 2)), np.empty(0))


class Detector:
    """MTCNN with weights from the package itself; nothing is downloaded. One thread an actor."""

    def __init__(self, min_face: int) -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self._mtcnn = MTCNN(min_face_size=min_face, keep_all=True, device=torch.device("cpu"))

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """Faces in an RGB uint8 image [h, w, 3]."""
        try:
            boxes, confidences, landmarks = self._mtcnn.detect(image, landmarks=True)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return NOTHING  # it stacks empty lists where no scale fits or every candidate vanishes
        if boxes is None:
            return NOTHING
        order = np.argsort(-confidences.astype(np.float64), kind="stable")
        return Detections(
            *(np.asarray(values, dtype=np.float64)[order] for values in (boxes, landmarks, confidences))
        )

    def detect_tight(self, image: NDArray[np.uint8]) -> Detections:
        """:meth:`detect`, then once more where a crop is so tight or so small that it missed the face.

        Tried in order: a border of half the short side; the same, enlarged to ``ENLARGED`` pixels. Found faces are
        given in the pixels of the image as it came.
        """
        if found := self.detect(image):
            return found
        short = min(image.shape[:2])
        for zoom in (1.0, ENLARGED / short):
            if zoom != 1.0 and short >= ENLARGED:
                break
            if found := self._detect_padded(image, zoom):
                return found
        return NOTHING

    def _detect_padded(self, image: NDArray[np.uint8], zoom: float) -> Detections:
        border = min(image.shape[:2]) // 2
        padded = cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_REPLICATE)
        if zoom != 1.0:
            padded = cv2.resize(padded, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        found = self.detect(padded.astype(np.uint8))
        return Detections(found.boxes / zoom - border, found.landmarks / zoom - border, found.confidences)


ENLARGED = 160
"""Short side, in pixels, to which a small crop is enlarged for its last try."""
