"""A model on disk: weights as safetensors, everything else as JSON, never pickle.

folder/
  model.safetensors   all parameters and buffers
  config.json         network, preprocessing contract, model id, hash of the weights; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import safetensors
import safetensors.torch

import facerec
from facerec import documents, schema, storage
from facerec.errors import ConfigError, DatasetError, MismatchError
from facerec.models.embedder import Embedder, ModelConfig, build

Write = Callable[[str, bytes], storage.Written]
"""Writes a file, whole or not at all."""
CARD: documents.Shape = {
    "model": dict,
    "preprocessing": dict,
    "model_id": str,
    "about": dict,
    "weights_sha256": str,
}
"""What config.json must say."""
VERSION = 1
"""Raised when a reader of the old files could misread the new ones."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is to be known of a saved model beside its weights."""

    config: ModelConfig
    preprocessing: dict[str, Any]
    """The contract of the faces it was trained on."""
    model_id: str
    """Content hash of weights and network: equal models have equal ids."""
    about: dict[str, Any]
    """How it came to be: faces generation, steps, seed."""
    weights_sha256: str
    """Hash of the weights' file."""

    @property
    def preprocessing_id(self) -> str:
        """The contract's readable identifier, as it stands beside vectors."""
        return schema.Preprocessing(**self.preprocessing).id


def save_model(
    folder: str,
    model: Embedder,
    config: ModelConfig,
    preprocessing: dict[str, Any],
    about: dict[str, Any],
    write: Write = storage.write_bytes,
) -> Card:
    """Write the model; readers see it when ``config.json`` is there, which is last. ``write`` writes each file."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights = safetensors.torch.save(state)
    card = Card(
        config=config,
        preprocessing=preprocessing,
        model_id=_model_id(weights, config),
        about=dict(about),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    write(storage.join(folder, "model.safetensors"), weights)
    said = storage.json_bytes(
        {
            "format": VERSION,
            "code_version": facerec.__version__,
            "model": asdict(config),
            "preprocessing": preprocessing,
            "model_id": card.model_id,
            "weights_sha256": card.weights_sha256,
            "about": card.about,
        }
    )
    write(storage.join(folder, "config.json"), said)
    return card


def load_model(folder: str) -> tuple[Embedder, Card]:
    """The model in eval mode, and its card.

    Raises DatasetError where it is missing or damaged, MismatchError where weights and network disagree.
    """
    card = read_card(folder)
    uri = storage.join(folder, "model.safetensors")
    try:
        weights = storage.read_bytes(uri)
    except FileNotFoundError:
        raise DatasetError(
            f"{folder} has a config.json but no model.safetensors; save the model again"
        ) from None
    if hashlib.sha256(weights).hexdigest() != card.weights_sha256:
        raise DatasetError(
            f"{uri} is damaged: its hash is not the one in config.json; copy or train it again"
        )
    model = build(card.config, seed=0)
    try:
        model.load_state_dict(safetensors.torch.load(weights))
    except (RuntimeError, safetensors.SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise MismatchError(f"{uri} does not fit the network {card.config.backbone} ({said})") from None
    return model.eval(), card


def is_model(folder: str) -> bool:
    """Whether a finished model stands there."""
    return storage.exists(storage.join(folder, "config.json"))


def read_card(folder: str) -> Card:
    """The card alone, without the weights. Raises DatasetError where it is missing or damaged."""
    uri = storage.join(folder, "config.json")
    try:
        raw = storage.read_json(uri)
    except FileNotFoundError:
        raise DatasetError(
            f"{folder} holds no model (no config.json there); run jobs/train.py first"
        ) from None
    if raw.get("format") != VERSION:
        raise DatasetError(f"{uri} has format {raw.get('format')!r}; this code reads {VERSION}")
    documents.require(uri, raw, CARD, "copy the model again, or train it again")
    try:
        return Card(
            config=ModelConfig(**raw["model"]),
            preprocessing=raw["preprocessing"],
            model_id=raw["model_id"],
            about=raw["about"],
            weights_sha256=raw["weights_sha256"],
        )
    except (KeyError, TypeError, ConfigError) as error:
        raise DatasetError(
            f"{uri} is damaged ({type(error).__name__}: {error}); train the model again"
        ) from None


def _model_id(weights: bytes, config: ModelConfig) -> str:
    network = json.dumps(asdict(config), sort_keys=True).encode()
    return hashlib.sha256(network + b"\0" + weights).hexdigest()[:16]
