"""Checkpoints: whole or not at all, known by their hash, and with one to fall back on.

run/checkpoints/step-00000100/
  state.pt     weights, optimizer and elapsed time after 100 steps
  state.json   hash, step and network; written last, so a folder without it never happened

Nothing random is saved: schedule, augmentation and dropout are functions of (seed, step). Ray's own checkpoints are
not used: reporting one waits for a poll of the controller, and one not yet polled is lost with its worker.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from facerec import storage
from facerec.errors import DatasetError, MismatchError
from facerec.models.embedder import ModelConfig


@dataclass(frozen=True)
class State:
    """A checkpoint's content, still in bytes."""

    step: int
    """Steps done."""
    payload: bytes


def save(
    folder: str,
    step: int,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: ModelConfig,
    *,
    elapsed_s: float,
    keep: int,
) -> None:
    """Write the checkpoint after ``step`` steps, then remove all but the last ``keep``."""
    buffer = io.BytesIO()
    content = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "elapsed_s": elapsed_s}
    torch.save(content, buffer)
    payload, place = buffer.getvalue(), storage.join(folder, f"step-{step:08d}")
    storage.write_bytes(storage.join(place, "state.pt"), payload)
    about = {"step": step, "sha256": hashlib.sha256(payload).hexdigest(), "model": asdict(config)}
    storage.write_json(storage.join(place, "state.json"), about)
    for old in storage.list_folders(folder)[:-keep]:
        storage.remove_tree(old)


def latest(folder: str, config: ModelConfig) -> State | None:
    """The newest whole checkpoint, or None; says which damaged ones it went past.

    Raises MismatchError where it is of another network.
    """
    for place in reversed(storage.list_folders(folder)):
        try:
            return _read(place, config)
        except DatasetError as error:
            print(f"train: WARNING: {error}; going back to the checkpoint before", flush=True)
    return None


def restore(state: State, network: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Put the state back; gives the seconds trained so far. Never unpickles objects: weights_only."""
    content: dict[str, Any] = torch.load(io.BytesIO(state.payload), weights_only=True, map_location="cpu")
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    return float(content["elapsed_s"])


def _read(place: str, config: ModelConfig) -> State:
    try:
        about = json.loads(storage.read_bytes(storage.join(place, "state.json")))
        payload = storage.read_bytes(storage.join(place, "state.pt"))
        step, digest, model = int(about["step"]), about["sha256"], about["model"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DatasetError(f"checkpoint {place} is incomplete") from None
    if hashlib.sha256(payload).hexdigest() != digest:
        raise DatasetError(f"checkpoint {place} is damaged")
    if model != asdict(config):
        raise MismatchError(
            f"checkpoint {place} is of the network {model} and this run's is {asdict(config)}; choose another --run"
        )
    return State(step, payload)
