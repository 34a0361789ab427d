"""The alignment stage: photographs in, aligned faces and rejects out, as one Ray Data stage over parts.

The sorted photographs are cut into parts. A part is one block all along and one atomic file at the end, so a run
killed anywhere goes on where it stopped: what finished parts hold is known from their rows, and only the rest is
cut into parts again.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from facerec import publish, schema, storage
from facerec.alignment import compaction, sources
from facerec.alignment.detector import Detections, Detector
from facerec.alignment.geometry import straighten
from facerec.alignment.nets import Backend
from facerec.alignment.photograph import Rejected, decode
from facerec.alignment.subject import Policy, choose_subject
from facerec.errors import ConfigError
from facerec.phash import perceptual_hash
from facerec.session import cores

JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
MAX_FILE_BYTES = 256 * 2**20
"""A larger file is refused unread: no photograph is, and one must not take an actor's memory with it."""

BATCH_PIXELS = 4_000_000
"""Photographs are searched together while they hold no more pixels; a larger one goes alone."""


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """What counts as a face, and which face is the photograph's subject."""

    min_face: int = 20
    """Smallest face looked for, pixels of the photograph's own."""
    min_face_fraction: float = 0.05
    """The same as a part of the photograph's short side; the larger of the two counts, and 0 turns it off."""
    backend: Backend = "auto"
    """What runs the networks, the same faces either way: auto is openvino where it is installed."""
    min_confidence: float = 0.8
    """Faces that the detector is less sure of are rejects (0 to 1)."""
    subject: Policy = "center_weighted"
    """Which of several faces the photograph's name belongs to."""
    retry_tight: bool = True
    """Look again with a border, and enlarged, where nothing was found: tight crops lose 12 % otherwise."""

    def __post_init__(self) -> None:
        if self.min_face < 12:
            raise ConfigError(
                f"min_face is {self.min_face} pixels; MTCNN sees nothing below 12 (--detection.min_face)"
            )
        if not 0 <= self.min_face_fraction < 1:
            raise ConfigError(
                f"min_face_fraction is {self.min_face_fraction}; it lies in 0 to 1 (--detection.min_face_fraction)"
            )
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(
                f"min_confidence is {self.min_confidence}; it lies in 0 to 1 (--detection.min_confidence)"
            )


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Photographs to aligned faces: detect, choose the subject, straighten to 224 x 224, publish."""

    source: str = ""
    """Photographs: a folder per person, or a .csv/.parquet manifest with uri, identity; local or s3://."""
    faces: str = "faces"
    """Where the faces dataset goes; the same command again goes on, or adds what is new in the source."""
    detection: DetectionConfig = DetectionConfig()
    """Detection and subject policy."""
    part: int = 200
    """Photographs a part, the unit of work that a kill can lose."""
    actors: int = 0
    """Detector actors, one core each; 0 takes all the cluster's cores."""
    seed: int = 0
    """Order of identity chunks in the shards."""

    def __post_init__(self) -> None:
        if self.part < 1 or self.actors < 0:
            raise ConfigError(
                f"part is {self.part} and actors {self.actors}; need --part >= 1 and --actors >= 0"
            )


def align(photographs: ray.data.Dataset, config: DetectionConfig, actors: int) -> ray.data.Dataset:
    """schema.PHOTOGRAPHS rows to schema.ALIGNED rows: at least one row a photograph, errors included."""
    return photographs.map_batches(
        Aligner,
        fn_constructor_args=(config,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=1,
    )


def align_source(config: AlignConfig) -> publish.Dataset:
    """Align what is not aligned yet, compact, publish. Raises SourceError, MismatchError or BusyError before work."""
    if not config.source:
        raise ConfigError("no photographs given; name a folder per person or a manifest (--source)")
    listing = sources.list_photographs(config.source)
    sources.require_trainable(listing.photographs, config.source)
    faces = storage.absolute(config.faces)
    with publish.exclusive(faces, "--faces"):
        publish.claim(
            faces, {"source": storage.absolute(config.source), **_decides(config.detection)}, "--faces"
        )
        missing = _missing(faces, listing.photographs)
        print(
            f"align: {listing.photographs.num_rows} photographs listed ({listing.ignored} other files ignored), "
            f"{missing.num_rows} to align",
            flush=True,
        )
        if not missing.num_rows and storage.exists(storage.join(faces, "manifest.json")):
            print("align: finished already, nothing new in the source", flush=True)
            return publish.open_dataset(faces, "jobs/align.py")
        _align_parts(faces, missing, config)
        return compaction.compact(faces, listing, asdict(config), config.seed)


def _decides(detection: DetectionConfig) -> dict[str, Any]:
    """What decides which faces there are: the backend does not."""
    return {name: value for name, value in asdict(detection).items() if name != "backend"}


def _missing(faces: str, photographs: pa.Table) -> pa.Table:
    """The listed photographs that no finished part holds."""
    done: set[tuple[str, str | None]] = set()
    for uri in storage.list_files(storage.join(faces, "parts"), ".parquet"):
        table = storage.read_table(uri, ["source_uri", "identity"])
        done |= set(zip(table["source_uri"].to_pylist(), table["identity"].to_pylist(), strict=True))
    keys = zip(photographs["source_uri"].to_pylist(), photographs["identity"].to_pylist(), strict=True)
    return photographs.filter(pa.array([key not in done for key in keys], pa.bool_()))


def _align_parts(faces: str, photographs: pa.Table, config: AlignConfig) -> None:
    parts = [photographs.slice(at, config.part) for at in range(0, photographs.num_rows, config.part)]
    if not parts:
        return
    ray.data.DataContext.get_current().target_max_block_size = None  # a block is a part, and is never cut
    actors = min(config.actors or cores(), len(parts))
    rows = align(ray.data.from_arrow(parts), config.detection, actors)
    written = rows.map_batches(
        publish.write_part,  # type: ignore[arg-type]  # Ray's stub has no fn_args in it
        fn_args=(storage.join(faces, "parts"),),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0.01,
    )
    started, done = time.monotonic(), 0
    for report in written.iter_rows():
        done += report["photographs"]
        rate = done / (time.monotonic() - started)
        print(
            f"align: {done}/{photographs.num_rows} photographs, {report['faces']} faces and {report['rejects']} rejects "
            f"in the last part, {rate:.1f} photographs/s, {(photographs.num_rows - done) / rate:.0f} s to go",
            flush=True,
        )


class Aligner:
    """The actor: a detector that lives as long as the pool, one part at a time, some photographs at once."""

    def __init__(self, config: DetectionConfig) -> None:
        self._config = config
        self._detector = Detector(config.min_face, config.min_face_fraction, config.backend)

    def __call__(self, part: pa.Table) -> pa.Table:
        """schema.PHOTOGRAPHS rows to schema.ALIGNED rows. A bad photograph is a row, never an exception."""
        rows: list[dict[str, Any]] = []
        waiting: list[_Decoded] = []
        for photograph in part.to_pylist():
            decoded = _decode(photograph)
            if sum(other.pixels for other in waiting) + decoded.pixels > BATCH_PIXELS:
                rows += self._align(waiting)
                waiting = []
            waiting.append(decoded)
        return pa.Table.from_pylist(rows + self._align(waiting), schema=schema.ALIGNED)

    def _align(self, batch: list[_Decoded]) -> list[dict[str, Any]]:
        """Rows of a batch, in its order."""
        images = [decoded.image for decoded in batch if decoded.image is not None]
        found = iter(
            self._detector.detect_tight_many(images)
            if self._config.retry_tight
            else self._detector.detect_many(images)
        )
        rows = []
        for decoded in batch:
            if decoded.image is None:
                rows.append(decoded.known)
            else:
                rows += self._faces(decoded.image, decoded.known, next(found))
        return rows

    def _faces(
        self, image: NDArray[np.uint8], known: dict[str, Any], found: Detections
    ) -> list[dict[str, Any]]:
        try:
            return self._chosen(image, known, found)
        except Rejected as rejected:
            return [_reject(known, "image", rejected.reason, rejected.detail)]

    def _chosen(
        self, image: NDArray[np.uint8], known: dict[str, Any], found: Detections
    ) -> list[dict[str, Any]]:
        if not found:
            raise Rejected("no_face", f"{image.shape[1]} x {image.shape[0]} pixels")
        height, width = image.shape[:2]
        chosen = choose_subject(found, height, width, self._config.subject)
        if found.confidences[chosen] < self._config.min_confidence:
            raise Rejected(
                "low_confidence", f"{found.confidences[chosen]:.3f} < {self._config.min_confidence}"
            )
        others = [
            _reject(known, "face", "not_subject", f"box {np.round(found.boxes[i]).astype(int).tolist()}")
            for i in range(len(found))
            if i != chosen
        ]
        return [face_row(image, found, chosen, known), *others]


@dataclass(frozen=True)
class _Decoded:
    """A photograph's row so far and its pixels; without pixels the row is its reject."""

    known: dict[str, Any]
    image: NDArray[np.uint8] | None

    @property
    def pixels(self) -> int:
        return 0 if self.image is None else self.image.shape[0] * self.image.shape[1]


def _decode(photograph: dict[str, Any]) -> _Decoded:
    known = dict(photograph)
    try:
        data = _read(photograph["source_uri"])
        known["source_hash"] = hashlib.sha256(data).hexdigest()
        return _Decoded(known, decode(data))
    except Rejected as rejected:
        return _Decoded(_reject(known, "image", rejected.reason, rejected.detail), None)


def face_row(
    image: NDArray[np.uint8], found: Detections, index: int, known: dict[str, Any]
) -> dict[str, Any]:
    """One schema.ALIGNED row of a face; raises Rejected where its landmarks have no area to straighten by."""
    try:
        aligned = straighten(image, found.landmarks[index], schema.FACE_SIDE)
    except (ValueError, cv2.error) as error:
        raise Rejected("no_face", f"landmarks of no use: {error}") from None
    name = f"{known['source_hash']}\x1f{known['identity']}\x1f{index}"
    encoded = cv2.imencode(".jpg", cv2.cvtColor(aligned, cv2.COLOR_RGB2BGR), JPEG)[1].tobytes()
    face_id = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    grey = cv2.cvtColor(aligned, cv2.COLOR_RGB2GRAY)
    return {
        **known,
        "face_id": face_id,
        "image": {"bytes": encoded, "path": f"{face_id}.jpg"},
        "box": found.boxes[index].tolist(),
        "landmarks": found.landmarks[index].ravel().tolist(),
        "confidence": float(found.confidences[index]),
        "blur": float(cv2.Laplacian(grey, cv2.CV_64F).var()),
        "phash": perceptual_hash(aligned),
    }


def _read(uri: str) -> bytes:
    try:
        with storage.open_input(uri) as file:
            if file.size() > MAX_FILE_BYTES:
                raise Rejected("too_large", f"{file.size():,} bytes; at most {MAX_FILE_BYTES:,} are read")
            return bytes(file.read())
    except OSError as error:
        raise Rejected("unreadable", f"{type(error).__name__}: {error}") from None


def _reject(
    known: dict[str, Any], level: Literal["image", "face"], reason: str, detail: str
) -> dict[str, Any]:
    return {**known, "level": level, "reason": reason, "detail": detail[:500]}
