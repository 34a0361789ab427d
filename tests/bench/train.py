"""`make bench-train`: a training step's speed and memory, on this machine's cores or its GPU.

Ratios come from runs by turns in one process, as medians; peak memory from a process of its own for each.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facerec.models.embedder import ModelConfig, build
from facerec.models.precision import cpu_gains_from_bf16
from facerec.telemetry import read_json_lines
from facerec.training.batches import BatchConfig
from facerec.training.config import TrainConfig
from facerec.training.loop import work
from facerec.training.mining import MiningConfig
from facerec.training.plan import make_plan
from facerec.training.step import MicroBatches, descend
from tests.bench.targets import Row, conclude, megabytes
from tests.support.ddp import run_ddp
from tests.support.faces import write_faces

LIGHT, FACENET = ModelConfig(), ModelConfig(backbone="inception_resnet_v1", side=224)
MICRO, FACES = 32, 4
HALF = cpu_gains_from_bf16() or torch.cuda.is_available()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Measure every case, print, and exit 1 where a target is missed."""
    step = _measured("step")
    cached = {size: _measured("cache", str(size)) for size in (128, 1024)}
    memory = cached[1024]["megabytes"] / cached[128]["megabytes"]
    ranks = {workers: _measured("ranks", str(workers)) for workers in (1, 2)}
    large = _measured("large")
    what = "bf16, channels last" if HALF else "fp32, channels last (bf16 is no faster on this CPU)"
    rows = [
        Row("InceptionResnetV1 at 224, step: eager fp32 NCHW", step["eager"], "faces/s"),
        Row(f"  {what}", step["ours"], "faces/s"),
        Row("  faster by", step["ratio"], "x", at_least=2.3 if HALF else None),
        Row("gradient cache, b = 128: memory of a step", cached[128]["megabytes"], "MB"),
        Row("  b = 1,024", cached[1024]["megabytes"], "MB"),
        Row("  more by", memory, "x", at_most=1.5),
        Row("  b = 1,024, time over the whole graph kept", cached[1024]["ratio"], "x", at_most=1.4),
        Row("a run, 1 rank of 1 thread", ranks[1]["rate"], "faces/s"),
        Row("  2 ranks of 1 thread", ranks[2]["rate"], "faces/s"),
        Row("  data wait, 1 rank", 100 * ranks[1]["wait"], "%", at_most=2),
        Row("  data wait, 2 ranks (rank 0)", 100 * ranks[2]["wait"], "%", at_most=2),
        Row("mobilenetv3_small_050 at 224, b = 4,096, 2 workers: a step", large["seconds"], "s"),
        Row("  memory of both workers", large["megabytes"], "MB", at_most=20_000),
        Row("  steps done", large["steps"], "", at_least=2),
    ]
    conclude(
        "bench-train", rows, [f"on {torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'the CPU'}"]
    )


def _measured(*case: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.train", *case]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {key: float(value) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


def step() -> dict[str, float]:
    """Faces a second of one micro-batch's forward and backward: plain, and as training does it."""
    pixels = torch.randint(0, 256, (16, 224, 224, 3), dtype=torch.uint8, device=DEVICE)
    plain = build(FACENET, 0).to(DEVICE)
    ours = MicroBatches(
        build(FACENET, 0).to(DEVICE).to(memory_format=torch.channels_last), 1, "bf16" if HALF else "fp32"
    )
    images = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()
    eager, fast = _by_turns(
        lambda: plain(images).sum().backward(), lambda: ours(pixels, [0]).sum().backward()
    )
    return {"eager": 16 / eager, "ours": 16 / fast, "ratio": eager / fast}


def cache(size: int) -> dict[str, float]:
    """Peak memory of a step with gradient caching, and its time over that of the whole graph kept."""
    groups = size // MICRO
    pixels = torch.randint(0, 256, (size, LIGHT.side, LIGHT.side, 3), dtype=torch.uint8)
    faces = np.arange(size)
    network = build(LIGHT, 0).to(DEVICE).to(memory_format=torch.channels_last)

    def descend_once(cached: bool) -> None:
        descend(
            MicroBatches(network, groups),
            pixels,
            faces // FACES,
            faces,
            seeds=range(groups),
            sizes=[size],
            miner="semi_hard",
            mining=MiningConfig(),
            cache=cached,
        )

    used = _peak(lambda: descend_once(True))
    cached, kept = _by_turns(lambda: descend_once(True), lambda: descend_once(False), times=3)
    return {"megabytes": used, "ratio": cached / kept}


def ranks(workers: int) -> dict[str, float]:
    """Faces a second and share of data wait of a whole run, decoding and augmenting beside it; medians of its lines."""
    with tempfile.TemporaryDirectory() as folder:
        lines = _trained(folder, workers, LIGHT, BatchConfig(p=32, k=FACES, micro_batch=MICRO), steps=30)
    steady = lines[len(lines) // 3 :]
    return {
        "rate": statistics.median(line["images_per_s"] for line in steady),
        "wait": statistics.median(line["data_wait"] for line in steady),
    }


def large() -> dict[str, float]:
    """Two steps of 4,096 faces at 224 px by two workers, through loader, gradient caching and checkpoint."""
    batch = BatchConfig(p=1024, k=FACES, micro_batch=MICRO, cache=True)
    with tempfile.TemporaryDirectory() as folder:
        lines = _trained(folder, 2, replace(LIGHT, side=224), batch, steps=2)
    return {
        "seconds": 4096 / lines[-1]["images_per_s"],
        "megabytes": 2 * lines[-1]["memory_mb"],
        "steps": lines[-1]["step"],
    }


def _trained(
    folder: str, workers: int, model: ModelConfig, batch: BatchConfig, steps: int
) -> list[dict[str, Any]]:
    people = 2 * batch.fit(10**6).p  # enough beside the unseen and those kept for validation
    faces = write_faces(Path(folder, "faces"), people, 2 * FACES if people < 100 else FACES)
    config = TrainConfig(
        faces=faces.folder,
        run=f"{folder}/run",
        model=model,
        batch=batch,
        steps=steps,
        log_every=1,
        num_workers=0,  # Ray Train's are none: the ranks are run_ddp's
        checkpoint_every=steps,
        gpu=DEVICE.type == "cuda",
    )
    run_ddp(workers, work, make_plan(config))
    return read_json_lines(f"{folder}/run/metrics.jsonl")


def _by_turns(*ways: Callable[[], object], times: int = 5) -> list[float]:
    """Median seconds of each, run by turns."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(times + 1):
        for way, spent in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                spent.append(time.perf_counter() - began)
    return [statistics.median(spent) for spent in seconds]


def _peak(way: Callable[[], object]) -> float:
    """The most megabytes held beyond those before."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    held = megabytes("VmRSS")
    way()
    return max(megabytes("VmHWM") - held, 1.0)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(1)
        cases: dict[str, Callable[..., dict[str, float]]] = {
            "step": step,
            "cache": cache,
            "ranks": ranks,
            "large": large,
        }
        print(json.dumps(cases[sys.argv[1]](*map(int, sys.argv[2:]))))
    else:
        main()
