"""Faces of photographs behind one verb: MTCNN's cascade, and a second look at crops too tight for it.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks", 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from facerec.alignment import nets
from facerec.alignment.mtcnn import Faces, find_faces
from facerec.alignment.nets import Backend

Image = NDArray[np.uint8]


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


class Detector:
    """MTCNN with facenet-pytorch's own weights; nothing is downloaded. One thread an actor.

    ``min_face`` is the smallest face looked for, in pixels, ``min_face_fraction`` the same as a part of the
    photograph's short side; the larger of the two counts.
    """

    def __init__(
        self, min_face: int, min_face_fraction: float = 0.0, backend: Backend = "auto", device: str = "cpu"
    ) -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self._min_face, self._fraction = min_face, min_face_fraction
        self._nets = nets.load(backend, device)

    def detect(self, image: Image) -> Detections:
        """Faces in an RGB uint8 image [h, w, 3]."""
        return self.detect_many([image])[0]

    def detect_many(self, images: list[Image]) -> list[Detections]:
        """Faces of each image, whatever their sizes; the caller bounds how many pixels it holds at once."""
        return self._find(images, [self._smallest(image) for image in images])

    def detect_tight(self, image: Image) -> Detections:
        """:meth:`detect_tight_many` of one image."""
        return self.detect_tight_many([image])[0]

    def detect_tight_many(self, images: list[Image]) -> list[Detections]:
        """:meth:`detect_many`, then once more where a crop is so tight or so small that it missed the face.

        Tried in order: a border of half the short side, large images reduced to ``PADDED`` pixels; the same, enlarged
        to ``ENLARGED`` pixels. Found faces are given in the pixels of the image as it came.
        """
        found = self.detect_many(images)
        for enlarge in (False, True):
            missed = [
                i
                for i, image in enumerate(images)
                if not found[i] and (not enlarge or min(image.shape[:2]) < ENLARGED)
            ]
            again = self._detect_padded([images[i] for i in missed], enlarge)
            for i, detections in zip(missed, again, strict=True):
                found[i] = detections
        return found

    def _detect_padded(self, images: list[Image], enlarge: bool) -> list[Detections]:
        zooms = [_zoom(image, enlarge) for image in images]
        smallest = [
            max(self._min_face, self._fraction * min(image.shape[:2]) * zoom)
            for image, zoom in zip(images, zooms, strict=True)
        ]
        padded = [_padded(image, zoom) for image, zoom in zip(images, zooms, strict=True)]
        found = self._find([image for image, _ in padded], smallest)
        return [
            Detections((faces.boxes - border) / zoom, (faces.landmarks - border) / zoom, faces.confidences)
            for faces, zoom, (_, border) in zip(found, zooms, padded, strict=True)
        ]

    def _smallest(self, image: Image) -> float:
        return max(float(self._min_face), self._fraction * int(min(image.shape[:2])))

    def _find(self, images: list[Image], min_faces: list[float]) -> list[Detections]:
        faces = find_faces(images, min_faces, self._nets)
        return [_of_photograph(faces, number) for number in range(len(images))]


def _of_photograph(faces: Faces, number: int) -> Detections:
    """Most confident first; of equally sure ones the largest."""
    mine = np.flatnonzero(faces.photos == number)
    boxes = faces.boxes[mine].astype(np.float64)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.lexsort((-area, -faces.probabilities[mine]))
    return Detections(
        boxes[order],
        faces.landmarks[mine][order].astype(np.float64),
        faces.probabilities[mine][order].astype(np.float64),
    )


def _zoom(image: Image, enlarge: bool) -> float:
    wanted = ENLARGED / min(image.shape[:2]) if enlarge else 1.0
    return min(wanted, math.sqrt(PADDED / (image.shape[0] * image.shape[1])))


def _padded(image: Image, zoom: float) -> tuple[Image, int]:
    """The image zoomed, with a border of half its short side, and how wide that is."""
    if zoom != 1.0:
        how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=how).astype(np.uint8, copy=False)
    border = min(image.shape[:2]) // 2
    padded = cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_REPLICATE)
    return padded.astype(np.uint8, copy=False), border


ENLARGED = 160
"""Short side, in pixels, to which a small crop is enlarged for its last try."""
PADDED = 1_000_000
"""Pixels a photograph has at most when it gets its border, as that quadruples a square one: 36 megapixels would become
144. A face that fills the photograph is as easy to see in fewer."""
