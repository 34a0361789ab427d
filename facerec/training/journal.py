"""What a run says while it goes: lines of metrics, curves, gauges, a progress line, warnings. Rank 0 writes them."""

from __future__ import annotations

import math
import resource
import time
from typing import Any

import torch

from facerec import storage
from facerec.telemetry import JsonLines, Prometheus, TensorBoard, flat
from facerec.training.clock import Clock
from facerec.training.gather import world
from facerec.training.measures import CollapseWatch, measure, progress_line
from facerec.training.plan import Plan
from facerec.training.step import Forward
from facerec.training.utilisation import utilisation


class Journal:
    """Metrics of one rank's run. Global numbers, but for ``seconds`` and ``memory_mb``, which are rank 0's."""

    def __init__(
        self, plan: Plan, clock: Clock, start: int, elapsed_s: float, flops_per_face: int | None = None
    ) -> None:
        self._plan, self._clock, self._rank, self._flops = plan, clock, world()[0], flops_per_face
        self._watch = CollapseWatch(plan.loss_at_collapse, plan.config.mining.margin)
        self._began = time.monotonic() - elapsed_s
        self._last = (start, time.monotonic())
        self._lines: JsonLines | None = None
        self._curves: TensorBoard | None = None
        self._gauges: Prometheus | None = None
        if self._rank == 0:
            self._open(start)

    def _open(self, start: int) -> None:
        self._plan.require_held()
        self._lines = JsonLines(self._plan.uri("metrics.jsonl"), keep=lambda line: _step(line) <= start)
        if not storage.is_s3(self._plan.uri()):
            self._curves = TensorBoard(self._plan.uri("tensorboard"), start)
        if self._plan.config.workers != (0, 0):
            self._gauges = Prometheus("facerec_train", self._plan.config.run)

    @property
    def elapsed_s(self) -> float:
        """Seconds trained, over all attempts."""
        return time.monotonic() - self._began

    def write(self, done: int, result: Forward, extra: dict[str, Any]) -> None:
        """One line after ``done`` steps. Collective: every rank must call it."""
        config = self._plan.config
        metrics = measure(result, config.mining.distance)
        steps, seconds = self._since(done)
        phases = {phase: spent / steps for phase, spent in self._clock.take().items()}
        if self._lines is None:
            return
        metrics |= {
            "step": done,
            "workers": world()[1],
            "images_per_s": self._plan.shape.faces * steps / seconds,
            "elapsed_s": self.elapsed_s,
            "seconds": phases,
            "data_wait": phases["wait"] * steps / seconds,
            "memory_mb": memory_mb(),
            **extra,
        }
        device = torch.cuda.get_device_name() if self._plan.config.gpu else ""
        speed, workers = metrics["images_per_s"], metrics["workers"]
        metrics |= utilisation(speed, self._flops, workers, device, self._plan.precision)
        self._plan.require_held()
        self._lines.append(metrics)
        numbers = flat(metrics)
        if self._curves:
            self._curves.write(done, numbers)
        if self._gauges:
            self._gauges.write(numbers)
        print(progress_line(metrics, config.steps, seconds / steps * (config.steps - done)), flush=True)
        if warning := self._watch.warning(metrics):
            print(warning, flush=True)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._curves:
            self._curves.close()

    def _since(self, done: int) -> tuple[int, float]:
        """Steps and seconds since the last line."""
        (before, then), now = self._last, time.monotonic()
        self._last = (done, now)
        return max(done - before, 1), max(now - then, 1e-9)


def _step(line: dict[str, Any]) -> float:
    """Of a line of metrics; of a damaged one it is never reached."""
    step = line.get("step")
    return step if isinstance(step, int) else math.inf


def memory_mb() -> float:
    """The most this process has held: of the GPU where it uses one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
