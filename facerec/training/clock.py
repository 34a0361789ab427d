"""Where the seconds of a step go, without holding the device up."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

PHASES = ("wait", "forward", "gather", "mine", "backward", "optimizer")
"""Of a step: for data, and then in order. With gradient caching, backward holds the second forward too; forward
holds the augmentation where a GPU does it."""


class Clock:
    """Adds up seconds by phase. On a GPU it records events, which are only looked at when the sums are taken."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._cuda = device is not None and device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count what happens within."""
        if self._cuda and phase != "wait":
            event: Any = torch.cuda.Event
            first, last = event(enable_timing=True), event(enable_timing=True)
            first.record()
            yield
            last.record()
            self._events.append((phase, first, last))
            return
        began = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        if self._events:
            torch.cuda.synchronize()
        for phase, first, last in self._events:
            self._seconds[phase] += first.elapsed_time(last) / 1000
        seconds = {phase: self._seconds[phase] for phase in PHASES}
        self._seconds.clear()
        self._events.clear()
        return seconds
