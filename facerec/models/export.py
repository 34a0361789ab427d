"""A model as one ONNX file: pixels in, unit vectors out, checked against torch before it is written.

The file's metadata say what a face must be: ``preprocessing`` (the contract, JSON), ``side``, ``model_id``, and in
words ``input`` and ``output``. Normalisation is in the graph; the resize to ``side`` pixels is not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

import facerec
from facerec import publish, schema, storage, synthetic
from facerec.errors import ConfigError, MismatchError
from facerec.models.backends import FromPixels, folded
from facerec.models.format import Card, load_model
from facerec.models.images import decode_jpeg, to_input
from facerec.models.inference import onnx_runner

CHECKED = 32
"""Faces that both networks embed before the file is written."""
LEAST_COSINE = 0.999


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A model to ONNX."""

    model: str = "run/model"
    """Folder of the model, as jobs/train.py leaves it."""
    out: str = "model.onnx"
    """The file to write."""
    faces: str = ""
    """Folder of aligned faces by which the file is checked; drawn faces where none is named."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".onnx"):
            raise ConfigError(f"out is {self.out}; name a file that ends in .onnx (--out)")


def export_model(config: ExportConfig) -> float:
    """Write the file; gives the least cosine between its vectors and torch's.

    Raises MismatchError, and writes nothing, where that is below LEAST_COSINE.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it, and says so in a traceback
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'facerec[export]'") from None
    storage.require_writable_file(config.out, "--out")
    model, card = load_model(storage.absolute(config.model))
    faces = _faces(config, card)
    data = _converted(folded(model), card)
    with torch.inference_mode():
        ours = model(to_input(np.stack(faces), card.config.side)).numpy()
    theirs = onnx_runner(onnxruntime, data, config.out, batch_size=CHECKED, flip=False)(faces)
    cosine = float((ours * theirs).sum(axis=1).min())
    if not cosine >= LEAST_COSINE:
        raise MismatchError(
            f"ONNX Runtime and torch disagree on {config.model}: cosine {cosine:.5f} on {len(faces)} faces, "
            f"{LEAST_COSINE} is needed; nothing was written"
        )
    storage.write_bytes(storage.absolute(config.out), data)
    return cosine


def _converted(model: torch.nn.Module, card: Card) -> bytes:
    side = card.config.side
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    program: Any = torch.onnx.export(
        FromPixels(model).eval(),
        (example,),
        dynamo=True,
        dynamic_shapes={"pixels": {0: torch.export.Dim("n")}},
        input_names=["pixels"],
        output_names=["embeddings"],
        verbose=False,
    )
    proto = program.model_proto
    about = {
        "model_id": card.model_id,
        "faces": str(
            card.about.get("faces", "")
        ),  # digest of the faces it was trained on: names stay out of models
        "preprocessing": json.dumps(card.preprocessing, sort_keys=True),
        "side": str(side),
        "input": f"pixels: aligned RGB faces, uint8 0-255 [n, {side}, {side}, 3]; shrunk by area averaging from {schema.FACE_SIDE}",
        "output": f"embeddings: unit vectors, float32 [n, {schema.EMBEDDING_DIM}]",
        "code_version": facerec.__version__,
    }
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=value)
    return bytes(proto.SerializeToString())


def _faces(config: ExportConfig, card: Card) -> list[NDArray[np.uint8]]:
    """RGB uint8 [224, 224, 3] each, at most CHECKED."""
    if not config.faces:
        drawn = (synthetic.render(person, 0) for person in range(CHECKED))
        sides = (schema.FACE_SIDE, schema.FACE_SIDE)
        return [np.asarray(cv2.resize(face, sides, interpolation=cv2.INTER_AREA), np.uint8) for face in drawn]
    dataset = publish.open_dataset(config.faces, "jobs/align.py")
    schema.require_same_preprocessing(
        card.preprocessing, dataset.preprocessing, f"the model {config.model}", f"the faces {config.faces}"
    )
    rows = next(file["rows"] for file in dataset.manifest["files"] if file["kind"] == "faces")
    first = dataset.rows(dataset.files("faces")[0], np.arange(min(rows, CHECKED)), ["image"])
    return [decode_jpeg(image["bytes"]) for image in first["image"].to_pylist()]
