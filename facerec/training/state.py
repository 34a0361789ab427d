"""Checkpoints: whole or not at all, known by their hash, and with one to fall back on.

run/checkpoints/step-00000100/
  state-RUN.pt   weights, their moving average, optimizer, elapsed time and chain of batches after 100 steps
  state.json     name and hash of that file, step, network and validation score; without it the checkpoint does not exist

The name of the state has the id of the run that writes it. A run that was paused and replaced can so never write over the
state of the run that replaced it.

Nothing random is saved: schedule, augmentation and dropout are functions of (seed, step). Ray's own checkpoints are
not used: reporting one waits for a poll of the controller, and one not yet polled is lost with its worker.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from facerec import storage
from facerec.errors import DatasetError, MismatchError
from facerec.lock import Fence
from facerec.models.embedder import ModelConfig

PLACE = re.compile(r"step-\d{8}")
"""The name of a checkpoint's folder."""


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
    folder: str,
    step: int,
    content: dict[str, Any],
    config: ModelConfig,
    *,
    score: float | None,
    keep: int,
    fence: Fence | None = None,
) -> None:
    """Write the checkpoint after ``step`` steps, then remove all but the last ``keep`` complete ones and the best one.

    Removes checkpoints of later steps too: the run that resumed before them found them damaged. They would otherwise
    count as the newest, and the complete one would be removed.

    Raises BusyError, and changes nothing, if the run folder now belongs to another run.
    """
    write = fence.write if fence else storage.write_bytes
    name = f"state-{fence.run}.pt" if fence else "state.pt"
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload, place = buffer.getvalue(), storage.join(folder, f"step-{step:08d}")
    write(storage.join(place, name), payload)
    digest = hashlib.sha256(payload).hexdigest()
    about = {"step": step, "file": name, "sha256": digest, "model": asdict(config), "score": score}
    write(storage.join(place, "state.json"), storage.json_bytes(about))
    for old in _superseded(folder, step, keep):
        if fence:
            fence.require()
        storage.remove_tree(old)


def latest(folder: str, config: ModelConfig) -> State | None:
    """The newest whole checkpoint, or None; says which damaged ones it passed over.

    Raises MismatchError if it is of another network.
    """
    return _first_whole(reversed(_places(folder)), config)


def newest_step(folder: str) -> int:
    """The step of the newest complete checkpoint, or 0 if there is none. Its hash is not verified."""
    complete = filter(_is_complete, reversed(_places(folder)))
    return next(map(_step, complete), 0)


def best(folder: str, config: ModelConfig) -> State | None:
    """The whole checkpoint with the highest score, the first of equals; None where none has one."""
    return _first_whole(_by_score(_places(folder)), config)


def _first_whole(places: Iterable[str], config: ModelConfig) -> State | None:
    passed = 0
    for place in places:
        try:
            return _read(place, config)
        except DatasetError as error:
            passed += 1
            print(f"train: WARNING: {error}; going back to the checkpoint before", flush=True)
    if passed:
        print(f"train: WARNING: none of {passed} checkpoints is whole", flush=True)
    return None


def _superseded(folder: str, newest: int, keep: int) -> list[str]:
    """The checkpoints that are not needed any more, now that the one of step ``newest`` is written."""
    places = _places(folder)
    until = [place for place in places if _step(place) <= newest]
    kept = {*list(filter(_is_complete, until))[-keep:], *_by_score(until)[:1]}
    return [place for place in places if place not in kept]


def _step(place: str) -> int:
    """The step of a checkpoint, from the name of its folder."""
    return int(place.rsplit("-", 1)[1])


def _is_complete(place: str) -> bool:
    """Whether the checkpoint was written to its end: ``state.json`` is written last."""
    return storage.exists(storage.join(place, "state.json"))


def _by_score(places: list[str]) -> list[str]:
    """Those of the checkpoints that have a score, best first."""
    scores = {place: _about(place).get("score") for place in places}
    scored = {place: score for place, score in scores.items() if isinstance(score, int | float)}
    return sorted(scored, key=lambda place: -scored[place])


def _places(folder: str) -> list[str]:
    """The folders of checkpoints, whole or not, oldest first; other folders there are not ours."""
    return [place for place in storage.list_folders(folder) if PLACE.fullmatch(place.rsplit("/", 1)[-1])]


def _about(place: str) -> dict[str, Any]:
    try:
        return dict(json.loads(storage.read_bytes(storage.join(place, "state.json"))))
    except (OSError, ValueError, TypeError):
        return {}


def _read(place: str, config: ModelConfig) -> State:
    try:
        about = _about(place)
        payload = storage.read_bytes(storage.join(place, about["file"]))
        step, digest, model, score = int(about["step"]), about["sha256"], about["model"], about["score"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DatasetError(f"checkpoint {place} is incomplete") from None
    if (found := hashlib.sha256(payload).hexdigest()) != digest:
        raise DatasetError(
            f"checkpoint {place} is damaged: {len(payload)} bytes have the sha256 {found[:12]}, not {str(digest)[:12]}"
        )
    if model != asdict(config):
        raise MismatchError(
            f"checkpoint {place} is of the network {model} and this run's is {asdict(config)}; choose another --run"
        )
    return State(step, score, payload)
