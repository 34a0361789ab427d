"""One trial of an experiment: train a cell of the grid in this process, and score it on people that no cell has seen."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from facerec import publish, storage
from facerec.errors import BusyError, FacerecError, StorageError
from facerec.evaluation.unseen import score_unseen
from facerec.models.images import decode_jpeg
from facerec.models.inference import load_embedder
from facerec.telemetry import read_json_lines
from facerec.training.config import TrainConfig
from facerec.training.fit import train
from facerec.training.plan import make_plan
from facerec.training.state import newest_step
from facerec.training.verdict import verdict

Equal = Literal["faces", "steps", "seconds"]

ATTEMPTED = "attempts.json"
ATTEMPTS = 3
"""Times that a trial's process may be lost without a newer checkpoint than at the time before."""

PROBE_STEPS = 20
"""Steps that are timed where cells get equal seconds; the first line of metrics, which warms up, is left out, and so is
the last one, as its time includes the validation of a checkpoint."""


def try_cell(settings: TrainConfig, equal: Equal, amount: float, folder: str) -> dict[str, Any]:
    """Train a cell below ``folder``, or go on training, and score it; what the user can mend is an ``error`` in place of scores.

    What training says goes to ``log.txt`` there: lines of many trials at once are nothing to read.
    """
    if not storage.exists(settings.faces):  # a node that joined without the mount
        raise StorageError(
            f"{settings.faces} is not seen here; mount it on all nodes, or keep it in s3:// (--faces)"
        )
    _count_attempt(folder)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            steps = steps_of(settings, equal, amount, folder)
            settings = replace(settings, run=storage.join(folder, "run"), steps=steps)
            train(settings)
            return _scores(settings)
        except (StorageError, BusyError):
            raise  # may be over when the cell is run again
        except FacerecError as error:
            return {"error": str(error)}
        finally:
            storage.write_bytes(storage.join(folder, "log.txt"), said.getvalue().encode())


def has_begun(folder: str) -> bool:
    """Whether the cell has trained: what went wrong before is the user's to mend."""
    return storage.exists(storage.join(folder, "run", "run.json"))


def forget_attempts(folder: str) -> None:
    """Before a cell is tried by a new command."""
    storage.remove_file(storage.join(folder, ATTEMPTED))


def _count_attempt(folder: str) -> None:
    """Raise FacerecError where the process was lost so often that another attempt would be lost too.

    Ray starts it again for as long as it dies, and one that the kernel killed has said nothing.
    """
    uri, step = storage.join(folder, ATTEMPTED), newest_step(storage.join(folder, "run", "checkpoints"))
    before = storage.read_json(uri) if storage.exists(uri) else {}
    attempts = before["attempts"] if before.get("step") == step else 0
    if attempts == ATTEMPTS:
        raise FacerecError(
            f"its process was lost {attempts} times after step {step}, perhaps for want of memory: "
            "fewer trials at once (--cpus), smaller batches (grid), or --train.batch.cache true"
        )
    storage.write_json(uri, {"step": step, "attempts": attempts + 1})


def steps_of(settings: TrainConfig, equal: Equal, amount: float, folder: str) -> int:
    """As many as the cell's share comes to; seconds are timed once, and kept for a cell that is run again."""
    if equal == "steps":
        return max(1, round(amount))
    if equal == "faces":
        return max(1, round(amount / make_plan(settings).shape.faces))
    probe = storage.join(folder, "probe")
    train(replace(settings, run=probe, steps=PROBE_STEPS, log_every=5))
    first, *_, last, _ = read_json_lines(storage.join(probe, "metrics.jsonl"))
    seconds: float = (last["elapsed_s"] - first["elapsed_s"]) / (last["step"] - first["step"])
    return max(1, round(amount / seconds))


def _scores(settings: TrainConfig) -> dict[str, Any]:
    """The finished run on the people it never saw, beside its untrained network."""
    plan = make_plan(settings)
    dataset = publish.open_dataset(settings.faces, "jobs/align.py", plan.dataset.generation)
    names, hashes, images = faces_of(dataset, plan.split.unseen)
    lines = read_json_lines(plan.uri("metrics.jsonl"))
    said, last = verdict(lines, plan.loss_at_collapse, settings.mining.margin), lines[-1]
    trained, untrained = (vectors(plan.uri(name), images, settings.gpu) for name in ("model", "untrained"))
    return score_unseen(trained, names, hashes, untrained) | {
        "unseen_people": len(plan.split.unseen),
        "steps": settings.steps,
        "batch": plan.shape.faces,
        "faces_seen": settings.steps * plan.shape.faces,
        "seconds": last["elapsed_s"],
        "memory_mb": last["memory_mb"],
        "loss": last["loss"],
        "verdict": said.word,
        "why": said.why,
    }


def faces_of(
    dataset: publish.Dataset, people: Sequence[str]
) -> tuple[NDArray[np.str_], NDArray[np.int64], list[bytes]]:
    """Names, perceptual hashes and JPEG bytes of all faces of some people; of the others nothing is held."""
    names, hashes, images = [], [], list[bytes]()
    for uri in dataset.uris("faces"):
        rows = storage.read_table(uri, ["identity", "phash"], expected=dataset.expected(uri))
        theirs = np.flatnonzero(pc.is_in(rows["identity"], pa.array(sorted(people), pa.string())))
        names.append(rows["identity"].take(theirs))
        hashes.append(rows["phash"].take(theirs))
        images += [image["bytes"] for image in dataset.rows(uri, theirs, ["image"])["image"].to_pylist()]
    return np.concatenate(names).astype(str), np.concatenate(hashes).astype(np.int64), images


def vectors(model: str, images: Iterable[bytes], gpu: bool = False) -> Any:
    """Unit vectors [n, d] of JPEG bytes."""
    embed = load_embedder(model, backend="torch", device="cuda" if gpu else "cpu")
    return embed(map(decode_jpeg, images))
