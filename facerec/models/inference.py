"""A model on disk as a plain callable: aligned faces in, unit vectors out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from facerec import schema, storage
from facerec.errors import ConfigError, DatasetError
from facerec.models.backends import (
    Backend,
    Network,
    OnnxNetwork,
    OpenVinoNetwork,
    TorchNetwork,
    settled_backend,
)
from facerec.models.device import calls
from facerec.models.format import load_model
from facerec.models.images import resize
from facerec.models.precision import Precision, settled

Image = NDArray[np.uint8]


class Runner:
    """A network in batches of few fixed shapes: what does not fill one is padded, to a quarter of it where that will do."""

    def __init__(
        self,
        network: Network,
        *,
        side: int,
        preprocessing: dict[str, Any],
        model_id: str,
        batch_size: int,
        flip: bool,
    ) -> None:
        self.preprocessing, self.model_id = preprocessing, model_id
        self._network, self._side, self._flip = network, side, flip
        self._batch_size = batch_size
        self._sizes = (batch_size, max(batch_size // 4, 1))

    def __call__(self, faces: Iterable[Image]) -> NDArray[np.float32]:
        """Unit vectors, float32 [n, 128], in order, of aligned faces, RGB uint8 [224, 224, 3] each.

        ``faces`` is an array [n, 224, 224, 3], or anything that gives one after another: a batch is held at once.
        """
        vectors, faces = [torch.empty(0, schema.EMBEDDING_DIM)], iter(faces)
        while batch := list(islice(faces, self._batch_size)):
            vectors += self._pieces(np.stack([resize(_checked(face), self._side) for face in batch]))
        return torch.cat([piece.cpu() for piece in vectors]).numpy()

    def _pieces(self, pixels: Image) -> list[Tensor]:
        vectors = []
        for chosen, size in calls(len(pixels), self._sizes):
            piece = pixels[chosen]
            vectors.append(self._embed(_padded(piece, size))[: len(piece)])
        return vectors

    def _embed(self, pixels: Image) -> Tensor:
        vectors = self._network(pixels)
        if not self._flip:
            return vectors
        mirrored = np.ascontiguousarray(pixels[:, :, ::-1])
        return F.normalize(vectors + self._network(mirrored), dim=1)


def _checked(face: Image) -> Image:
    wanted = (schema.FACE_SIDE, schema.FACE_SIDE, 3)
    if face.shape != wanted or face.dtype != np.uint8:
        raise ConfigError(f"a face is {face.dtype} {face.shape}; aligned faces are uint8 {wanted}, RGB")
    return face


def _padded(pixels: Image, size: int) -> Image:
    """``pixels`` with black faces behind, [size, side, side, 3]."""
    padded = np.zeros((size, *pixels.shape[1:]), np.uint8)
    padded[: len(pixels)] = pixels
    return padded


def load_embedder(
    path: str,
    *,
    backend: Backend = "auto",
    precision: Precision = "auto",
    batch_size: int = 32,
    flip: bool = False,
    device: str = "cpu",
) -> Runner:
    """A callable from aligned faces, RGB uint8 [n, 224, 224, 3], to unit vectors, float32 [n, 128].

    ``path`` is a model's folder, or a file that jobs/export.py wrote, which ONNX Runtime runs whatever the backend and
    precision. ``flip`` averages with the mirrored face. Raises DatasetError where there is no model.
    """
    if path.endswith(".onnx"):
        return _load_onnx(path, batch_size, flip)
    model, card = load_model(storage.absolute(path))
    gpu, side = device != "cpu", card.config.side
    half = settled(precision, model, gpu)
    network: Network = (
        OpenVinoNetwork(model, side, half)
        if settled_backend(backend, gpu) == "openvino"
        else TorchNetwork(model, half, device)
    )
    return Runner(
        network,
        side=side,
        preprocessing=card.preprocessing,
        model_id=card.model_id,
        batch_size=batch_size,
        flip=flip,
    )


def _load_onnx(path: str, batch_size: int, flip: bool) -> Runner:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("onnxruntime is not installed: pip install 'facerec[export]'") from None
    try:
        data = storage.read_bytes(storage.absolute(path))
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist; run jobs/export.py first") from None
    return onnx_runner(onnxruntime, data, path, batch_size=batch_size, flip=flip)


def onnx_runner(onnxruntime: Any, data: bytes, name: str, *, batch_size: int, flip: bool) -> Runner:
    """A runner of an exported file's bytes; raises DatasetError where they are something else."""
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        about = session.get_modelmeta().custom_metadata_map
        return Runner(
            OnnxNetwork(session),
            side=int(about["side"]),
            preprocessing=json.loads(about["preprocessing"]),
            model_id=about["model_id"],
            batch_size=batch_size,
            flip=flip,
        )
    except Exception as error:  # noqa: BLE001  # ONNX Runtime's own errors have no base but Exception
        said = " ".join(str(error).split())[:200]
        raise DatasetError(f"{name} is not a model that jobs/export.py wrote ({said})") from None
