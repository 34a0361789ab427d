"""Detection and embedding of drawn people by several processes on one device, and how equal a GPU's boxes are to a CPU's.

Without Ray: each process has a detector or a network of its own and decodes its JPEG files, as an actor of a job does.
``python -m tests.bench.gpu_detection cuda`` prints all figures; a caller that spawns processes needs the guard of
``__main__``.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import Protocol

import cv2
import numpy as np
import torch

from facerec import schema
from facerec.alignment.aligner import BATCH_PIXELS
from facerec.alignment.detector import Detections, Detector, Image
from facerec.alignment.nets import Backend
from facerec.decoding import decode
from facerec.models.embedder import INCEPTION, ModelConfig, build
from facerec.models.format import save_model
from facerec.models.images import decode_jpeg
from facerec.models.inference import load_embedder
from facerec.synthetic import render

MIN_FACE, FRACTION = 20, 0.05
START_SECONDS = 120
"""In which all processes must have their networks."""
NEAR = 0.1
"""Pixels up to which two boxes count as the same."""

Work = Callable[[list[bytes]], int]
"""JPEG files to the number of their faces."""


class Task(Protocol):
    """What each process does."""

    def start(self) -> Work:
        """Called once in each process."""


def detection(
    device: str,
    *,
    processes: int = 8,
    seconds: float = 4.0,
    photographs: int = 64,
    side: int = 250,
    backend: Backend = "auto",
) -> dict[str, float]:
    """``photographs_per_s`` and ``faces_per_s`` of MTCNN over drawn photographs of ``side`` pixels, decoding included."""
    rate, faces = _rates(Detecting(device, backend), _drawn(photographs, side), processes, seconds)
    return {"photographs_per_s": rate, "faces_per_s": faces}


def embedding(
    device: str,
    *,
    processes: int = 8,
    seconds: float = 4.0,
    batch: int = 256,
    side: int = 160,
    backbone: str = INCEPTION,
) -> dict[str, float]:
    """``faces_per_s`` of a network at ``side`` pixels over aligned faces of 224 pixels, decoding included."""
    faces = (_drawn(min(batch, 64), schema.FACE_SIDE) * batch)[:batch]
    config = ModelConfig(backbone=backbone, side=side)
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, build(config, seed=0), config, schema.Preprocessing().to_json(), {})
        return {"faces_per_s": _rates(Embedding(device, folder, batch), faces, processes, seconds)[1]}


def differences(device: str, *, photographs: int = 128, side: int = 250) -> dict[str, float]:
    """The boxes of torch on the device against those of torch on the CPU, over drawn photographs.

    ``equal_counts``: share of photographs with as many faces. Of these, ``max_pixels``: the largest distance of a box's
    side, and ``near``: share of boxes whose sides are all within ``NEAR`` pixels.
    """
    images = [decode(jpeg) for jpeg in _drawn(photographs, side)]
    here, there = (_found(name, images) for name in ("cpu", device))
    equal = [pair for pair in zip(here, there, strict=True) if len(pair[0]) == len(pair[1])]
    apart = np.concatenate([np.abs(one.boxes - other.boxes).max(axis=1, initial=0) for one, other in equal])
    return {
        "equal_counts": len(equal) / len(images),
        "max_pixels": float(apart.max(initial=0)),
        "near": float(np.mean(apart <= NEAR)),
    }


def _found(device: str, images: list[Image]) -> list[Detections]:
    detector = Detector(MIN_FACE, FRACTION, "torch", device)
    return [found for at in range(0, len(images), 64) for found in detector.detect_many(images[at : at + 64])]


def _drawn(count: int, side: int) -> list[bytes]:
    """JPEG files of as many people."""
    images = (cv2.cvtColor(render(person, 0, side=side), cv2.COLOR_RGB2BGR) for person in range(count))
    return [cv2.imencode(".jpg", image)[1].tobytes() for image in images]


@dataclass(frozen=True)
class Detecting:
    """MTCNN, over as many photographs at once as the aligner takes."""

    device: str
    backend: Backend

    def start(self) -> Work:
        """A detector."""
        detector = Detector(MIN_FACE, FRACTION, self.backend, self.device)

        def work(jpegs: list[bytes]) -> int:
            faces, images = 0, []
            for number, jpeg in enumerate(jpegs, 1):
                images.append(decode(jpeg))
                if number == len(jpegs) or sum(image.size // 3 for image in images) > BATCH_PIXELS:
                    faces += sum(map(len, detector.detect_tight_many(images)))
                    images = []
            return faces

        return work


@dataclass(frozen=True)
class Embedding:
    """A network in batches."""

    device: str
    model: str
    batch: int

    def start(self) -> Work:
        """An embedder."""
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        embed = load_embedder(self.model, batch_size=self.batch, device=self.device)
        return lambda jpegs: len(embed(decode_jpeg(jpeg) for jpeg in jpegs))


def _rates(task: Task, jpegs: list[bytes], processes: int, seconds: float) -> tuple[float, float]:
    """Files and faces a second of all processes together, each over all files again and again."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes,
        mp_context=spawn,
        initializer=_start,
        initargs=(task, jpegs, spawn.Barrier(processes, timeout=START_SECONDS)),
    ) as pool:
        done = [task.result() for task in [pool.submit(_work, seconds) for _ in range(processes)]]
    files, faces, began, ended = zip(*done, strict=True)
    wall = max(ended) - min(began)
    return sum(files) / wall, sum(faces) / wall


def _start(task: Task, jpegs: list[bytes], barrier: Barrier) -> None:
    global _run, _jpegs, _barrier
    _run, _jpegs, _barrier = task.start(), jpegs, barrier
    _run(_jpegs)  # shapes that are seen for the first time


def _work(seconds: float) -> tuple[int, int, float, float]:
    """Files, faces, and when they were begun and ended, on the clock of all processes."""
    _barrier.wait()
    began, files, faces = time.monotonic(), 0, 0
    while time.monotonic() - began < seconds:
        faces += _run(_jpegs)
        files += len(_jpegs)
    return files, faces, began, time.monotonic()


def main(device: str) -> None:
    """Print every figure of a device."""
    for name, figures in {
        "detection": detection(device),
        "embedding at 160 px": embedding(device),
        "embedding at 224 px": embedding(device, side=224),
        "boxes against the CPU": differences(device),
    }.items():
        print(name, {key: round(value, 3) for key, value in figures.items()}, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
