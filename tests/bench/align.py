"""`make bench-align`: the detector against facenet-pytorch's MTCNN, photographs of $FACEREC_DATA, one thread.

Ratios are of CPU time, interleaved batch by batch, the median over batches; the same min_face and no retry. A
1,000 photographs more are compared face by face. And what Ray Data costs: the stage as the job runs it, against the same
aligner and the same writing in a plain pool of two processes, in turns, at the steady state.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import torch
from facenet_pytorch import MTCNN
from numpy.typing import NDArray

from facerec import publish
from facerec.alignment.aligner import Aligner
from facerec.alignment.config import AlignConfig
from facerec.alignment.detector import Detections, Detector
from facerec.alignment.pipeline import written_parts
from facerec.decoding import decode
from facerec.lock import Fence
from facerec.photographs import as_table
from facerec.session import ray_session
from tests.bench.targets import Row, conclude

Image = NDArray[np.uint8]
MIN_FACE, FRACTION = 20, 0.05
BACKENDS = ("openvino", "torch")
PHOTOGRAPHS, PART, WARM, PROCESSES, ROUNDS = 800, 20, 8, 2, 3
"""Of the comparison with a pool; the first WARM parts are not timed."""


def main() -> None:
    """Measure every size class, print, and exit 1 where a target is missed."""
    if "FACEREC_DATA" not in os.environ:
        sys.exit("bench-align: FACEREC_DATA is not set; point it at the folder that holds lfw, pins and odd")
    torch.set_num_threads(1)
    reference = MTCNN(min_face_size=MIN_FACE, keep_all=True)
    ours = {name: Detector(MIN_FACE, backend=name) for name in BACKENDS}  # type: ignore[arg-type]
    for detector in ours.values():
        detector.detect_many([np.zeros((400, 400, 3), np.uint8)])
    classes, ratios, rows = _classes(Path(os.environ["FACEREC_DATA"])), {}, []
    spawn = multiprocessing.get_context("spawn")
    workers = {
        name: ProcessPoolExecutor(1, mp_context=spawn, initializer=_prepare, initargs=(name,))
        for name in ("reference", *BACKENDS)
    }
    for kind, batches in classes.items():
        measured = _ratios(batches, workers)
        for name, ratio in measured.items():
            ratios[name, kind] = ratio
            rows.append(Row(f"{kind}: {name}", ratio, "x", at_least=3.5 if name == "openvino" else None))
    for name, target in (("openvino", 4.0), ("torch", 2.6)):
        mean = statistics.geometric_mean(ratios[name, kind] for kind in classes)
        rows.append(Row(f"geometric mean: {name}", mean, "x", at_least=target))
    for worker in workers.values():
        worker.shutdown()
    rows += _relative(reference, classes["large"])
    for name, detector in ours.items():
        rows += _agreement(name, reference, detector, Path(os.environ["FACEREC_DATA"]))
    rows += _overhead(Path(os.environ["FACEREC_DATA"]))
    conclude("bench-align", rows, ["CPU time of one thread against facenet-pytorch 2.5.3's MTCNN."])


def _load(paths: list[Path]) -> list[Image]:
    return [decode(path.read_bytes()) for path in paths]


def _classes(data: Path) -> dict[str, list[list[Image]]]:
    """Batches as the aligner makes them, by size class."""
    lfw = _load(sorted((data / "lfw").rglob("*.jpg"))[::64])
    pins = _load(sorted((data / "pins").rglob("*.jpg"))[::53])
    odd = _load(
        sorted([*(data / "odd/compreface_samples").iterdir(), *(data / "odd/natural_large").iterdir()])
    )
    medium = [image for image in odd if max(image.shape) <= 1000]
    large = [image for image in odd if max(image.shape) > 1000]
    return {
        "lfw, 250 px": [lfw[at : at + 32] for at in range(0, 96, 32)],
        "pins, 100-800 px": [pins[at : at + 32] for at in range(0, 64, 32)],
        "odd, 624-820 px": [medium] * 3,
        "large": [[image] for image in large],
    }


def _seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def _ratios(batches: list[list[Image]], workers: dict[str, ProcessPoolExecutor]) -> dict[str, float]:
    """Each detector in a process of its own, by turns: one's settings of the allocator would speed up the others."""
    found: dict[str, list[float]] = {name: [] for name in BACKENDS}
    for batch in batches:
        seconds = {name: worker.submit(_timed, batch).result() for name, worker in workers.items()}
        for name, ratios in found.items():
            ratios.append(seconds["reference"] / seconds[name])
    return {name: statistics.median(values) for name, values in found.items()}


def _prepare(name: str) -> None:
    global _detect
    torch.set_num_threads(1)
    if name == "reference":
        reference = MTCNN(min_face_size=MIN_FACE, keep_all=True)
        _detect = lambda batch: [reference.detect(image, landmarks=True) for image in batch]  # noqa: E731
    else:
        _detect = Detector(MIN_FACE, backend=name).detect_many  # type: ignore[arg-type]
    _detect([np.zeros((400, 400, 3), np.uint8)])


def _timed(batch: list[Image]) -> float:
    return _seconds(lambda: _detect(batch))


def _relative(reference: MTCNN, batches: list[list[Image]]) -> list[Row]:
    """The default fraction on large photographs against the reference's 20 pixels, and what it loses."""
    detector, ratios, kept, total = Detector(MIN_FACE, FRACTION), [], 0, 0
    for (image,) in batches:
        boxes: list[NDArray[np.float32]] = []
        theirs = _seconds(lambda image=image, boxes=boxes: boxes.append(reference.detect(image)[0]))
        found: list[Detections] = []
        ratios.append(
            theirs / _seconds(lambda image=image, found=found: found.append(detector.detect(image)))
        )
        large = [
            b
            for b in (boxes[0] if boxes[0] is not None else [])
            if min(b[2:] - b[:2]) >= FRACTION * min(image.shape[:2])
        ]
        kept += sum(any(_overlap(box, ours) > 0.4 for ours in found[0].boxes) for box in large)
        total += len(large)
    return [
        Row(f"large, min_face {FRACTION:.0%} of the short side", statistics.median(ratios), "x", at_least=12),
        Row(f"  lost of {total} faces above that size", 100 * (1 - kept / total), "%", at_most=1),
    ]


def _overhead(data: Path) -> list[Row]:
    """Photographs a second of Ray Data and of a pool of as many processes, once both are warm."""
    medium = [str(path) for path in sorted((data / "odd/compreface_samples").iterdir()) if _is_medium(path)]
    uris = (medium * PHOTOGRAPHS)[:PHOTOGRAPHS]
    names = [f"nobody {number}" for number in range(len(uris))]  # of equal parts one would be made
    photographs = as_table(uris, names)
    rates: dict[str, list[float]] = {"pool": [], "ray": []}
    starts: dict[str, list[float]] = {"pool": [], "ray": []}
    with ray_session(PROCESSES):
        for _ in range(ROUNDS):
            for name, run in (("pool", _by_pool), ("ray", _by_ray)):
                with tempfile.TemporaryDirectory() as folder:
                    began = time.monotonic()
                    ends = [time.monotonic() for _ in run(folder, photographs)]
                starts[name].append(ends[0] - began)
                rates[name].append(PART * (len(ends) - WARM) / (ends[-1] - ends[WARM - 1]))
    ratios = [pool / ray for pool, ray in zip(rates["pool"], rates["ray"], strict=True)]
    return [
        *(
            Row(f"{name}: {PROCESSES} processes", statistics.median(rates[name]), "photos/s")
            for name in rates
        ),
        Row("Ray Data's overhead", 100 * (statistics.median(ratios) - 1), "%", at_most=10),
        *(Row(f"  first part after, {name}", statistics.median(starts[name]), "s") for name in starts),
    ]


def _is_medium(path: Path) -> bool:
    with PIL.Image.open(path) as image:
        return 600 <= max(image.size) <= 1000


def _by_ray(folder: str, photographs: pa.Table) -> Iterator[object]:
    config = AlignConfig(out=folder, part=PART, actors=PROCESSES)
    with publish.exclusive(folder, "--out") as fence:
        yield from written_parts(fence, photographs, config)


def _by_pool(folder: str, photographs: pa.Table) -> Iterator[object]:
    with (
        publish.exclusive(folder, "--out") as fence,
        multiprocessing.get_context("spawn").Pool(PROCESSES, _start) as pool,
    ):
        parts = [(fence, photographs.slice(at, PART)) for at in range(0, len(photographs), PART)]
        yield from pool.imap_unordered(_align_and_write, parts)


def _start() -> None:
    global _aligner
    _aligner = Aligner(AlignConfig())


def _align_and_write(part: tuple[Fence, pa.Table]) -> None:
    fence, photographs = part
    publish.write_part(fence, photographs, lambda: _aligner(photographs))


def _agreement(name: str, reference: MTCNN, detector: Detector, data: Path) -> list[Row]:
    paths = [*sorted((data / "lfw").rglob("*.jpg"))[::10], *sorted((data / "pins").rglob("*.jpg"))[::8]]
    counts = same = total = 0
    for at in range(0, len(paths), 32):
        images = _load(paths[at : at + 32])
        for image, found in zip(images, detector.detect_many(images), strict=True):
            boxes, _, landmarks = reference.detect(image, landmarks=True)
            theirs = [] if boxes is None else list(zip(boxes, landmarks, strict=True))
            counts += len(found) == len(theirs)
            same += sum(_same(box, points, found) for box, points in theirs)
            total += len(theirs)
    return [
        Row(
            f"face count equal, of {len(paths)} photographs: {name}",
            100 * counts / len(paths),
            "%",
            at_least=99,
        ),
        Row(f"  IoU >= .95 and landmarks within 1 %, of {total} faces", 100 * same / total, "%", at_least=99),
    ]


def _same(box: NDArray[np.float32], points: NDArray[np.float32], found: Detections) -> bool:
    side = float((box[2:] - box[:2]).max())
    return any(
        _overlap(box, ours) >= 0.95 and np.abs(marks - points).max() <= 0.01 * side
        for ours, marks in zip(found.boxes, found.landmarks, strict=True)
    )


def _overlap(one: NDArray[np.float32], other: NDArray[np.float64]) -> float:
    """Intersection over union."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    return common / float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - common)


if __name__ == "__main__":
    main()
