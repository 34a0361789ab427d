"""`make bench-gpu`: what one GPU does in training, detection and embedding; at most 8 minutes on an H100 or H200.

Without a GPU, `python -m tests.bench.gpu tiny` runs every case on the CPU with small sizes, which shows that the script
works and measures nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from facerec.models.embedder import ModelConfig, build
from facerec.models.precision import settled
from facerec.telemetry import read_json_lines
from facerec.training import mining, state
from facerec.training.augment import AugmentConfig
from facerec.training.batches import BatchConfig
from facerec.training.config import OptimizerConfig, TrainConfig
from facerec.training.distances import Anchors
from facerec.training.loop import Worker, _optimizer, _torch_settings, work
from facerec.training.mining import MiningConfig, mine
from facerec.training.plan import make_plan
from facerec.training.step import MicroBatches, descend
from facerec.training.utilisation import flops_per_face, utilisation
from facerec.training.validation import Validation
from tests.bench.gpu_detection import detection, differences, embedding
from tests.bench.targets import Row, conclude
from tests.support.faces import write_faces

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
FUSED = 6000
"""Faces/s on an H100 or H200 with fused kernels that never wait; without fusion it would be 4,400 (see docs/recipe.md)."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    model: ModelConfig
    faces: int
    """Of a global batch."""
    micro: tuple[int, int]
    steps: int
    warm: int = 4


WHOLE = Size(ModelConfig(backbone="inception_resnet_v1", side=224, dropout=0.2), 1024, (64, 128), 12)
TINY = Size(ModelConfig(backbone="resnet10t", side=32, dropout=0.2), 32, (8, 16), 2, 1)

HOW: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"backend": "inductor"},
    "shared": {"backend": "inductor", "shared": 64},
    "graphs": {"backend": "inductor", "shared": 64, "cuda_graphs": GPU},
}
"""Ways to embed a rank's micro-batches: arguments of MicroBatches."""
SAID = {
    "eager": "one after another, eager",
    "compiled": "one after another, compiled",
    "shared": "in shared forwards, compiled",
    "graphs": "in shared forwards, compiled, CUDA graphs",
}
STEPS = [(0, "eager"), (1, "eager"), (1, "graphs"), (0, "graphs"), (1, "shared"), (0, "compiled")]
"""(which size of the micro-batch, how): the most important first, as compiling takes a minute each."""
BUDGET_S, MOST_S = 400, 470
"""After which no further case is begun, and the one that runs is ended: the script takes 8 minutes at most."""


class Cases:
    """Runs each case in a process of its own, and notes what failed or came too late."""

    def __init__(self, kind: str) -> None:
        self._kind, self._began = kind, time.monotonic()
        self.notes: list[str] = []

    def __call__(self, *case: str) -> dict[str, float]:
        """The case's figures; none if it failed or the time is over."""
        if self._kind != "tiny" and time.monotonic() - self._began > BUDGET_S:
            self.notes.append(f"{' '.join(case)}: not begun after {BUDGET_S} s")
            return {}
        command = [sys.executable, "-m", "tests.bench.gpu", self._kind, *case]
        left = None if self._kind == "tiny" else MOST_S - (time.monotonic() - self._began)
        try:
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=left)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            self.notes.append(f"{error}; its output is above")
            return {}
        said = done.stdout.splitlines()[-1]
        print(f"bench-gpu: {' '.join(case)}: {said}", file=sys.stderr, flush=True)
        return {key: float(value) for key, value in json.loads(said).items()}


def main(kind: str) -> None:
    """Measure every case, print, and exit 1 where a target is missed or a case has failed."""
    if kind != "tiny" and not GPU:
        sys.exit(
            "bench-gpu: there is no GPU here; `python -m tests.bench.gpu tiny` tries the script on the CPU"
        )
    size, judged, measured = (TINY if kind == "tiny" else WHOLE), kind != "tiny", Cases(kind)
    rows, rates = list[Row](), dict[str, float]()
    for number, how in STEPS:
        m = size.micro[number]
        got = measured("step", how, str(m))
        rows += _step_rows(f"micro-batches of {m} {SAID[how]}", got)
        rates[how] = max(rates.get(how, 0.0), got.get("rate", 0.0))
    best = max(rates.values())
    rows.append(Row("the best of these", best, "faces/s", at_least=FUSED if judged else None))
    for processes in ("4", "0"):
        said = f"{processes} loader processes" if processes != "0" else "a loader thread"
        rows += _whole_rows(said, measured("whole", processes), 5 if judged and processes == "4" else None)
    if compared := measured("sorting"):
        rows.append(
            Row(
                "semi-hard at 31 positives: sorting over searching",
                compared["sorted"] / compared["searched"],
                "x",
            )
        )
    rows += [Row(name, value, "") for name, value in measured("others").items()]
    rows.append(Row("cases that failed or came too late", len(measured.notes), "", at_most=0))
    on = torch.cuda.get_device_name() if GPU else "the CPU, with sizes that measure nothing"
    conclude("bench-gpu", rows, [f"on {on}", *measured.notes])


def _step_rows(said: str, got: dict[str, float]) -> Iterator[Row]:
    if got:
        yield Row(said, got["rate"], "faces/s")
        yield Row("  launches of a step", got["launches"], "")
        yield Row("  the device is busy", 100 * got["busy"], "%")
        yield Row("  model FLOP utilisation", 100 * got["mfu"], "%")
        yield Row("  memory", got["megabytes"], "MB")
        yield Row("  first step, with compilation", got["first"], "s")


def _whole_rows(said: str, got: dict[str, float], most: float | None) -> Iterator[Row]:
    if got:
        yield Row(f"a whole run with {said}", got["rate"], "faces/s")
        yield Row("  data wait", 100 * got["wait"], "%", at_most=most)
        yield Row("  one checkpoint", got["checkpoint"], "s")
        yield Row("  one validation", got["validation"], "s")


def step(size: Size, how: str, micro: str) -> dict[str, float]:
    """Faces/s of whole steps on synthetic input: forward, mining, backward, optimizer."""
    m, b = int(micro), size.faces
    network = build(size.model, 0).to(DEVICE).to(memory_format=torch.channels_last).train()
    precision = settled("auto", network, GPU)
    model = MicroBatches(network, b // m, precision, **HOW[how])
    optimizer = _optimizer(network, OptimizerConfig())
    pixels = torch.randint(0, 256, (b, size.model.side, size.model.side, 3), dtype=torch.uint8)
    pixels = pixels.pin_memory() if GPU else pixels
    faces = np.arange(b)

    def once() -> None:
        optimizer.zero_grad(set_to_none=not HOW[how].get("cuda_graphs"))
        descend(
            model,
            pixels,
            faces // 4,
            faces,
            seeds=range(b // m),
            sizes=[b],
            miner="semi_hard",
            mining=MiningConfig(margin=2.0),
        )
        optimizer.step()

    first = _seconds(once, 1)
    for _ in range(size.warm):
        once()
    rate = b * size.steps / _seconds(once, size.steps)
    launches, busy = _traced(once)
    name = torch.cuda.get_device_name() if GPU else ""
    used = utilisation(rate, flops_per_face(network, size.model.side), 1, name, precision)
    held = torch.cuda.max_memory_allocated() / 2**20 if GPU else 0.0
    return {
        "rate": rate,
        "launches": launches,
        "busy": busy,
        "mfu": used.get("mfu", 0.0),
        "megabytes": held,
        "first": first,
    }


def _seconds(once: Callable[[], None], times: int) -> float:
    _wait()
    began = time.perf_counter()
    for _ in range(times):
        once()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def _traced(once: Callable[[], None]) -> tuple[int, float]:
    """(launches by the host, share of the time in which a kernel runs) of one step."""
    if not GPU:
        return 0, 0.0
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        once()
        _wait()
    events = found.events() or []
    launches = sum(event.name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch")) for event in events)
    kernels = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    )
    return launches, _covered(kernels)


def _covered(spans: list[tuple[float, float]]) -> float:
    """Share of the time from the first span's start to the last one's end that some span covers."""
    if not spans:
        return 0.0
    covered, reached = 0.0, spans[0][0]
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered / (reached - spans[0][0])


def whole(size: Size, processes: str) -> dict[str, float]:
    """A run by loader, GPU augmentation and journal; then one checkpoint and one validation."""
    m = size.micro[1]
    people, steps = 2 * size.faces // 4, 10 if GPU else 3
    with tempfile.TemporaryDirectory() as folder:
        faces = write_faces(Path(folder, "faces"), people, 4)
        config = TrainConfig(
            faces=faces.folder,
            run=f"{folder}/run",
            model=size.model,
            batch=BatchConfig(p=size.faces // 4, k=4, micro_batch=m),
            augment=AugmentConfig(rotation=10, colour=0.1, blur=0.1, low_resolution=0.2, occlusion=0.2),
            steps=steps,
            log_every=1,
            checkpoint_every=steps,
            num_workers=0,
            gpu=GPU,
            compile=GPU,
            cuda_graphs=GPU,
            loader_processes=int(processes),
        )
        plan = make_plan(config)
        work(plan)
        lines = read_json_lines(f"{folder}/run/metrics.jsonl")[steps // 2 :]
        with _torch_settings(config):
            return {
                "rate": float(np.median([line["images_per_s"] for line in lines])),
                "wait": float(np.median([line["data_wait"] for line in lines])),
                **_saved_and_validated(Worker(plan), folder),
            }


def _saved_and_validated(worker: Worker, folder: str) -> dict[str, float]:
    content = {"network": worker.network.state_dict(), "optimizer": worker.optimizer.state_dict()}
    began = time.perf_counter()
    state.save(f"{folder}/checkpoints", 1, content, worker.config.model, score=None, keep=1, fence=None)
    saved = time.perf_counter() - began
    assert isinstance(worker.validation, Validation)
    began = time.perf_counter()
    worker.validation.score(worker.network, worker.device, worker.plan.precision)
    return {"checkpoint": saved, "validation": time.perf_counter() - began}


def sorting(size: Size) -> dict[str, float]:
    """Seconds of semi-hard mining at 31 positives, in which a row is searched for each, and sorted once."""
    b = 8192 if size is WHOLE else 128
    whole = torch.nn.functional.normalize(torch.randn(b, 128, device=DEVICE), dim=1)
    anchors = Anchors(whole, whole, np.arange(b) // 32, np.arange(b))
    found = {}
    for name, above in (("searched", b), ("sorted", 0)):
        mining.SORT_ABOVE[DEVICE.type] = above
        mine("semi_hard", anchors, 2.0)
        found[name] = _seconds(lambda: mine("semi_hard", anchors, 2.0), 3) / 3
    return found


def others(size: Size) -> dict[str, float]:
    """Detection and embedding, by processes that share the device."""
    tiny: dict[str, Any] = {} if size is WHOLE else {"processes": 2, "seconds": 0.5}
    few: dict[str, Any] = {} if size is WHOLE else {"batch": 4, "backbone": "resnet10t", "side": 32}
    less: dict[str, Any] = {} if size is WHOLE else {"photographs": 4}
    detected = detection(DEVICE.type, **tiny, **less)
    near = differences(DEVICE.type, **less)
    embedded = [embedding(DEVICE.type, **tiny, **({"side": side} | few)) for side in (160, 224)]
    return {
        "detection and decoding, photographs of 250 px: photographs/s": detected["photographs_per_s"],
        "  photographs with as many faces as by torch on the CPU, %": 100 * near["equal_counts"],
        "  of their boxes, within 0.1 px, %": 100 * near["near"],
        "  largest distance, px": near["max_pixels"],
        "embedding and decoding at 160 px: faces/s": embedded[0]["faces_per_s"],
        "embedding and decoding at 224 px: faces/s": embedded[1]["faces_per_s"],
    }


CASES: dict[str, Callable[..., dict[str, float]]] = {
    "step": step,
    "whole": whole,
    "sorting": sorting,
    "others": others,
}

if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "whole"
    if len(sys.argv) > 2:
        torch.backends.cudnn.benchmark = True
        print(json.dumps(CASES[sys.argv[2]](TINY if chosen == "tiny" else WHOLE, *sys.argv[3:])))
    else:
        main(chosen)
