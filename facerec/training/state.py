"""Checkpoints: whole or not at all, known by their hash, and with one to fall back on.

run/checkpoints/step-00000100/
  state.pt     weights, their moving average, optimizer, elapsed time and chain of batches after 100 steps
  state.json   hash, step, network and validation score; written last, so a folder without it never happened

Nothing random is saved: schedule, augmentation and dropout are functions of (seed, step). Ray's own checkpoints are
not used: reporting one waits for a poll of the controller, and one not yet polled is lost with its worker.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from facerec import storage
from facerec.errors import DatasetError, MismatchError
from facerec.models.embedder import ModelConfig


@dataclass(frozen=True)
class State:
    """A checkpoint's content, still in bytes."""

    step: int
    """Steps done."""
    score: float | None
    """By validation; None where there was none."""
    payload: bytes

    def content(self) -> dict[str, Any]:
        """What was saved, on the CPU. Never unpickles objects: weights_only."""
        content: dict[str, Any] = torch.load(io.BytesIO(self.payload), weights_only=True, map_location="cpu")
        return content


def save(
    folder: str, step: int, content: dict[str, Any], config: ModelConfig, *, score: float | None, keep: int
) -> None:
    """Write the checkpoint after ``step`` steps, then remove all but the last ``keep`` and the best one."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload, place = buffer.getvalue(), storage.join(folder, f"step-{step:08d}")
    storage.write_bytes(storage.join(place, "state.pt"), payload)
    digest = hashlib.sha256(payload).hexdigest()
    about = {"step": step, "sha256": digest, "model": asdict(config), "score": score}
    storage.write_json(storage.join(place, "state.json"), about)
    best = _by_score(folder)[:1]
    for old in storage.list_folders(folder)[:-keep]:
        if old not in best:
            storage.remove_tree(old)


def latest(folder: str, config: ModelConfig) -> State | None:
    """The newest whole checkpoint, or None; says which damaged ones it went past.

    Raises MismatchError where it is of another network.
    """
    return _first_whole(reversed(storage.list_folders(folder)), config)


def newest_step(folder: str) -> int:
    """The step of the newest checkpoint, whole or not, 0 without any: whether a run gets on."""
    places = storage.list_folders(folder)
    return int(places[-1].rsplit("-", 1)[1]) if places else 0


def best(folder: str, config: ModelConfig) -> State | None:
    """The whole checkpoint with the highest score, the first of equals; None where none has one."""
    return _first_whole(_by_score(folder), config)


def _first_whole(places: Iterable[str], config: ModelConfig) -> State | None:
    for place in places:
        try:
            return _read(place, config)
        except DatasetError as error:
            print(f"train: WARNING: {error}; going back to the checkpoint before", flush=True)
    return None


def _by_score(folder: str) -> list[str]:
    """The checkpoints that have a score, best first."""
    scores = {place: _about(place).get("score") for place in storage.list_folders(folder)}
    scored = {place: score for place, score in scores.items() if score is not None}
    return sorted(scored, key=lambda place: -scored[place])


def _about(place: str) -> dict[str, Any]:
    try:
        return dict(json.loads(storage.read_bytes(storage.join(place, "state.json"))))
    except (OSError, ValueError):
        return {}


def _read(place: str, config: ModelConfig) -> State:
    try:
        about = _about(place)
        payload = storage.read_bytes(storage.join(place, "state.pt"))
        step, digest, model, score = int(about["step"]), about["sha256"], about["model"], about["score"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DatasetError(f"checkpoint {place} is incomplete") from None
    if hashlib.sha256(payload).hexdigest() != digest:
        raise DatasetError(f"checkpoint {place} is damaged")
    if model != asdict(config):
        raise MismatchError(
            f"checkpoint {place} is of the network {model} and this run's is {asdict(config)}; choose another --run"
        )
    return State(step, score, payload)
