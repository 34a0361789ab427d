"""The rows in which stages meet: every Arrow schema, and the preprocessing contract that travels with them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from facerec.errors import MismatchError

VERSION = 2
"""Raised when a reader of the old rows could misread the new ones."""

EMBEDDING_DIM = 128
FACE_SIDE = 224

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_BOX = pa.list_(pa.float32(), 4)
_HUGGINGFACE = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})

PHOTOGRAPHS = pa.schema(
    [("source_uri", pa.string()), ("identity", pa.string()), ("source_version", pa.string())]
)
"""What a source lists, and the key of a photograph: it is aligned again if any of the three differs.

``identity`` is null for collections without names. ``source_version`` changes with the content: size and modification
time of a local file, the ETag of an S3 object, or what the manifest's column ``version`` says; null if the photograph
was not there when it was listed.
"""

_FACE_FIELDS = [
    pa.field("face_id", pa.string()),  # blake2b-128 hex of (source bytes, identity, face index)
    pa.field("identity", pa.string()),
    pa.field("image", _IMAGE),  # aligned RGB JPEG q95 4:4:4
    pa.field("source_uri", pa.string()),
    pa.field("source_version", pa.string()),  # as in PHOTOGRAPHS
    pa.field("box", _BOX),  # x0, y0, x1, y1 in pixels of the upright photograph
    pa.field(
        "landmarks", pa.list_(pa.float32(), 10)
    ),  # x, y of: left eye, right eye, nose, mouth left and right
    pa.field("confidence", pa.float32()),  # of the detector, 0 to 1
    pa.field("blur", pa.float32()),  # variance of the Laplacian of the aligned grey face: low is blurred
    pa.field("phash", pa.int64()),  # perceptual hash of the aligned face
]

FACES = pa.schema(_FACE_FIELDS, metadata={"huggingface": _HUGGINGFACE})
"""One row an aligned face. Quality is columns; filtering is the reader's."""

REJECTS = pa.schema(
    [
        ("level", pa.string()),  # image or face
        ("source_uri", pa.string()),
        ("identity", pa.string()),
        ("source_version", pa.string()),  # as in PHOTOGRAPHS
        ("reason", pa.string()),  # one of REASONS
        ("detail", pa.string()),
    ]
)
"""One row a photograph without a face, or a face that was not taken."""

UNAVAILABLE = "unavailable"
"""Not there, or not ours to read, when it was aligned. The next run tries it again; all other reasons are facts."""
REASONS = (
    UNAVAILABLE,
    "unreadable",
    "too_large",
    "too_small",
    "no_face",
    "low_confidence",
    "not_subject",
    "duplicate",
)

ALIGNED = pa.schema(
    [
        *_FACE_FIELDS,
        pa.field("source_hash", pa.string()),  # sha256 of the file's bytes, null where it could not be read
        pa.field("level", pa.string()),  # null for a face; a reject's level otherwise
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""What the alignment stage yields: faces and rejects in one stream, at least one row a photograph."""

INDEX = pa.schema(
    [
        ("identity", pa.string()),
        ("file", pa.string()),  # name of a file of faces; the manifest says where it is
        ("row_group", pa.int32()),
        ("first_row", pa.int32()),  # within the row group
        ("rows", pa.int32()),
    ]
)
"""Spans of one identity's faces within one row group; training plans its reads from it alone."""

NEAR_DUPLICATES = pa.schema([("face_id", pa.string()), ("group", pa.int64())])
"""Faces that look like others by their perceptual hash, of whatever person; a face that stands alone has no row."""

EMBEDDINGS = pa.schema(
    [
        ("face_id", pa.string()),
        ("identity", pa.string()),
        ("source_uri", pa.string()),
        ("source_version", pa.string()),  # as in PHOTOGRAPHS
        ("phash", pa.int64()),
        ("box", _BOX),
        ("confidence", pa.float32()),
        ("embedding", pa.list_(pa.float32(), EMBEDDING_DIM)),  # unit length
        ("model_id", pa.string()),
        ("preprocessing_id", pa.string()),
        ("faces_generation", pa.int32()),
    ]
)
"""One unit vector a face."""

EMBEDDED = pa.schema(
    [*EMBEDDINGS, *map(ALIGNED.field, ["source_hash", "level", "reason", "detail"])],
)
"""What embedding photographs yields: vectors and rejects in one stream, at least one row a photograph."""


NAMES = pa.schema(
    [
        ("face_id", pa.string()),
        ("source_uri", pa.string()),
        ("box", _BOX),
        ("name", pa.string()),  # null: nobody who is known
        ("score", pa.float32()),  # how sure, also where nobody is named; the manifest says in what
    ]
)
"""One row a face that was looked up."""


def vectors(table: pa.Table) -> NDArray[np.float32]:
    """The embedding column of schema.EMBEDDINGS rows [n, d]."""
    column = table["embedding"].combine_chunks()
    return np.asarray(column.flatten().to_numpy(), np.float32).reshape(-1, EMBEDDING_DIM)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a photograph becomes the network's input. A model and faces that disagree are an error, never a guess."""

    detector: str = "facenet-pytorch 2.5.3 MTCNN"
    template: str = "arcface-112"
    side: int = FACE_SIDE
    color: str = "RGB"
    normalization: str = "x / 127.5 - 1"

    def to_json(self) -> dict[str, Any]:
        """A JSON object, as it stands in manifests and model files."""
        return asdict(self)

    @property
    def id(self) -> str:
        """A readable identifier; equal contracts have equal ones."""
        return f"{self.detector}|{self.template}|{self.side}|{self.color}|{self.normalization}"


def require_same_preprocessing(
    ours: dict[str, Any], theirs: dict[str, Any], our_name: str, their_name: str
) -> None:
    """Raise MismatchError, naming both sides and what differs, unless the contracts are equal."""
    differing = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if differing:
        said = "; ".join(f"{key} is {ours.get(key)!r} and {theirs.get(key)!r}" for key in differing)
        raise MismatchError(
            f"{our_name} and {their_name} were preprocessed differently: {said}; use faces of the same contract"
        )
