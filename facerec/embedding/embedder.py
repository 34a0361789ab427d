"""What an embedding actor holds: a network, and what is stamped on each of its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import pyarrow as pa
import torch

from facerec import pool, publish, schema, storage
from facerec.embedding.config import EmbedConfig
from facerec.lock import Fence
from facerec.models import device
from facerec.models.backends import settled_backend
from facerec.models.embedder import build
from facerec.models.format import Card, read_card
from facerec.models.images import decode_jpeg
from facerec.models.inference import load_embedder
from facerec.models.precision import settled


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What every row says of how it was made."""

    model_id: str
    preprocessing_id: str
    faces_generation: int | None
    """None where the faces came from photographs directly."""


def checked_card(config: EmbedConfig, preprocessing: dict[str, Any], whose: str) -> Card:
    """The model's card; raises MismatchError where it was trained on faces of another contract than ``whose``."""
    settled_backend(config.backend, config.gpu)
    card = read_card(storage.absolute(config.model))
    schema.require_same_preprocessing(card.preprocessing, preprocessing, f"the model {config.model}", whose)
    return card


def claimed(
    out: str, config: EmbedConfig, card: Card, origin: dict[str, Any], fence: Fence | None = None
) -> EmbedConfig:
    """Claim the folder for this model and origin; gives the settings with their precision settled and an absolute model path.

    Raises MismatchError if it holds another model's vectors, or others in any way. Without a fence it only looks.
    """
    uri = storage.join(out, "claim.json")
    begun = storage.read_json(uri).get("precision") if storage.exists(uri) else None
    precision = config.precision
    if precision == "auto":
        precision = begun or settled("auto", build(card.config, seed=0), config.gpu)
    config = replace(config, precision=precision, model=storage.absolute(config.model))
    deciding = {
        "model_id": card.model_id,
        "preprocessing_id": card.preprocessing_id,
        "precision": config.precision,
        "flip": config.flip,
    }
    if fence:
        publish.claim(fence, deciding | origin, "--out")
    else:
        publish.claimed(out, deciding | origin, "--out")
    return config


def about(config: EmbedConfig, card: Card) -> dict[str, Any]:
    """What the manifest says of how the vectors were made."""
    return {
        "model_id": card.model_id,
        "preprocessing_id": card.preprocessing_id,
        "preprocessing": card.preprocessing,
        "precision": config.precision,
        "flip": config.flip,
    }


def how(config: EmbedConfig, card: Card) -> dict[str, object]:
    """For a plan: the network, how it is run, and where the vectors go."""
    backend = settled_backend(config.backend, config.gpu)
    return {
        "model": f"{card.config.backbone} at {card.config.side} pixels, {card.model_id}",
        "workers": f"{config.actors or 'as many as there is room for'}, {pool.each(config)}, {backend}, {config.precision}",
        "result": config.out,
    }


class RowEmbedder:
    """The actor's core: a network that lives as long as the pool. One thread an actor."""

    def __init__(self, config: EmbedConfig, stamp: Stamp) -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self._stamp = stamp
        self._embed = load_embedder(
            config.model,
            backend=config.backend,
            precision=config.precision,
            batch_size=config.batch_size,
            flip=config.flip,
            device=device.name(config.gpu),
        )

    def __call__(self, faces: pa.Table) -> pa.Table:
        """schema.FACES rows to schema.EMBEDDINGS rows, one vector a face, in order; further columns pass through."""
        vectors = self._embed(decode_jpeg(image["bytes"].as_py()) for image in faces["image"])
        flat = pa.array(vectors.ravel(), pa.float32())
        rows = faces.drop_columns(["image"])
        rows = rows.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, schema.EMBEDDING_DIM))
        for name, value in vars(self._stamp).items():
            made = pa.array([value] * rows.num_rows, schema.EMBEDDINGS.field(name).type)
            rows = rows.append_column(name, made)
        return rows
