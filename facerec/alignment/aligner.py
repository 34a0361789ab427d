"""The aligner: an actor that turns a part of the photographs into rows of faces and rejects.

A photograph is decoded, searched, and its faces straightened; whatever is wrong with it becomes a row that says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from facerec import access, schema, storage
from facerec.alignment.config import EVERY_FACE, AlignConfig
from facerec.alignment.detector import Detections, Detector
from facerec.alignment.geometry import straighten
from facerec.alignment.subject import choose_subject
from facerec.decoding import decode, opened
from facerec.models import device
from facerec.models.images import decode_jpeg
from facerec.phash import perceptual_hash
from facerec.photographs import as_table
from facerec.pixels import Rejected

JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
BATCH_PIXELS = 4_000_000
"""Photographs are searched together once they hold more pixels, so no two large ones are held at once."""

Row = dict[str, Any]


class Aligner:
    """The actor: a detector that lives as long as the pool, one part at a time, some photographs at once."""

    def __init__(self, config: AlignConfig) -> None:
        self._config, detection = config, config.detection
        self._detector = (
            Detector(
                detection.min_face,
                detection.min_face_fraction,
                detection.backend,
                device.name(config.gpu),
            )
            if config.detector == "mtcnn"
            else None
        )

    def __call__(self, part: pa.Table) -> pa.Table:
        """schema.PHOTOGRAPHS rows to schema.ALIGNED rows. A bad photograph is a row, never an exception.

        Raises StorageError for a fault of the environment that outlasts some attempts.
        """
        rows: list[Row] = []
        waiting: list[_Decoded] = []
        for photograph in part.to_pylist():
            waiting.append(_decode(photograph))
            if sum(decoded.pixels for decoded in waiting) > BATCH_PIXELS:
                rows += self._align(waiting)
                waiting = []
        return pa.Table.from_pylist(rows + self._align(waiting), schema=schema.ALIGNED)

    def _align(self, batch: list[_Decoded]) -> list[Row]:
        """Rows of a batch, in its order."""
        images = [decoded.image for decoded in batch if decoded.image is not None]
        found = iter(self._detect(images))
        rows = []
        for decoded in batch:
            if decoded.image is None:
                rows.append(decoded.known)
            else:
                rows += self._rows(decoded.image, decoded.known, next(found))
        return rows

    def _detect(self, images: list[NDArray[np.uint8]]) -> list[Detections | None]:
        """What the detector finds in each image; None where there is no detector."""
        if self._detector is None:
            return [None] * len(images)
        if self._config.detection.retry_tight:
            return list(self._detector.detect_tight_many(images))
        return list(self._detector.detect_many(images))

    def _rows(self, image: NDArray[np.uint8], known: Row, found: Detections | None) -> list[Row]:
        try:
            if found is None:
                return [as_given(image, known)]
            if not found:
                raise Rejected("no_face", f"{image.shape[1]} x {image.shape[0]} pixels")
            return (
                self._all(image, known, found)
                if self._config.faces == "all"
                else self._subject(image, known, found)
            )
        except Rejected as rejected:
            return [_reject(known, "image", rejected.reason, rejected.detail)]

    def _subject(self, image: NDArray[np.uint8], known: Row, found: Detections) -> list[Row]:
        height, width = image.shape[:2]
        chosen = choose_subject(found, height, width, self._config.detection.subject)
        self._require_sure(found.confidences[chosen])
        others = [
            _reject(known, "face", "not_subject", _box(found, index))
            for index in range(len(found))
            if index != chosen
        ]
        return [straightened(image, found, chosen, known), *others]

    def _all(self, image: NDArray[np.uint8], known: Row, found: Detections) -> list[Row]:
        self._require_sure(found.confidences.max())
        rows = []
        for index in range(len(found)):
            try:
                self._require_sure(found.confidences[index])
                rows.append(straightened(image, found, index, known))
            except Rejected as rejected:
                detail = f"{_box(found, index)}: {rejected.detail}"
                rows.append(_reject(known, "face", rejected.reason, detail))
        if not any("face_id" in row for row in rows):
            raise Rejected("no_face", "none of its faces can be straightened")
        return rows

    def _require_sure(self, confidence: float) -> None:
        least = self._config.detection.min_confidence
        if confidence < least:
            raise Rejected("low_confidence", f"{confidence:.3f} < {least}")


def aligned_faces(uri: str) -> NDArray[np.uint8]:
    """All faces of one photograph, as the jobs see them: aligned RGB uint8 [n, 224, 224, 3], most confident first.

    For a notebook: a detector is made for each call. A photograph that cannot be read has no faces.
    """
    photograph = as_table([storage.absolute(uri)], [None])
    found = Aligner(AlignConfig(faces="all", detection=EVERY_FACE))(photograph).to_pylist()
    faces = [decode_jpeg(row["image"]["bytes"]) for row in found if row["face_id"]]
    return np.array(faces, np.uint8).reshape(-1, schema.FACE_SIDE, schema.FACE_SIDE, 3)


@dataclass(frozen=True)
class _Decoded:
    """A photograph's row so far and its pixels; without pixels the row is its reject."""

    known: Row
    image: NDArray[np.uint8] | None

    @property
    def pixels(self) -> int:
        return 0 if self.image is None else self.image.shape[0] * self.image.shape[1]


def _decode(photograph: Row) -> _Decoded:
    """Read and decode; raises StorageError where the environment keeps failing."""
    return access.retried(lambda: _decoded(photograph), photograph["source_uri"])


def _decoded(photograph: Row) -> _Decoded:
    known = dict(photograph)
    try:
        with opened(photograph["source_uri"]) as file:
            known["source_hash"] = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            return _Decoded(known, decode(file))
    except Rejected as rejected:
        return _Decoded(_reject(known, "image", rejected.reason, rejected.detail), None)


def straightened(image: NDArray[np.uint8], found: Detections, index: int, known: Row) -> Row:
    """One schema.ALIGNED row of a face; raises Rejected where its landmarks have no area to straighten by."""
    try:
        aligned = straighten(image, found.landmarks[index], schema.FACE_SIDE)
    except (ValueError, cv2.error) as error:
        raise Rejected("no_face", f"landmarks of no use: {error}") from None
    return {
        **_face(aligned, index, known),
        "box": found.boxes[index].tolist(),
        "landmarks": found.landmarks[index].ravel().tolist(),
        "confidence": float(found.confidences[index]),
    }


def as_given(image: NDArray[np.uint8], known: Row) -> Row:
    """One schema.ALIGNED row of a crop that is aligned already: its middle square; landmarks and confidence unknown."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    how = cv2.INTER_AREA if side > schema.FACE_SIDE else cv2.INTER_CUBIC
    resized = cv2.resize(square, (schema.FACE_SIDE, schema.FACE_SIDE), interpolation=how).astype(
        np.uint8, copy=False
    )
    return {**_face(resized, 0, known), "box": [left, top, left + side, top + side]}


def _face(aligned: NDArray[np.uint8], index: int, known: Row) -> Row:
    """What a row says of the aligned pixels."""
    name = f"{known['source_hash']}\x1f{known['identity'] or ''}\x1f{index}"  # nobody's differs from that of "None"
    encoded = cv2.imencode(".jpg", cv2.cvtColor(aligned, cv2.COLOR_RGB2BGR), JPEG)[1].tobytes()
    face_id = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    grey = cv2.cvtColor(aligned, cv2.COLOR_RGB2GRAY)
    return {
        **known,
        "face_id": face_id,
        "image": {"bytes": encoded, "path": f"{face_id}.jpg"},
        "blur": float(cv2.Laplacian(grey, cv2.CV_64F).var()),
        "phash": perceptual_hash(aligned),
    }


def _box(found: Detections, index: int) -> str:
    return f"box {np.round(found.boxes[index]).astype(int).tolist()}"


def _reject(known: Row, level: Literal["image", "face"], reason: str, detail: str) -> Row:
    return {**known, "level": level, "reason": reason, "detail": detail[:500]}
