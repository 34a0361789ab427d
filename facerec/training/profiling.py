"""A trace of some steps by torch's profiler, to be opened in Perfetto (https://ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from facerec.training.plan import Plan

BEFORE, WARMUP = 8, 2
"""Steps that are not profiled, and steps whose profile is thrown away: the first ones allocate and compile."""


@contextlib.contextmanager
def profiled(plan: Plan, start: int, rank: int) -> Iterator[Callable[[], None]]:
    """Within: call what is yielded after each step. Rank 0 writes the trace of ``--profile`` steps to run/profile/.

    A run that ends earlier leaves the trace of the steps that it had.
    """
    steps = plan.config.profile
    if not steps or rank:
        yield lambda: None
        return
    uri = plan.uri(f"profile/step-{start + BEFORE + WARMUP + 1:08d}.json.gz")

    def write(found: torch.profiler.profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json.gz")
            found.export_chrome_trace(str(path))
            plan.write(uri, path.read_bytes())
        print(f"train: trace of {steps} steps: {uri}", flush=True)

    schedule = torch.profiler.schedule(wait=BEFORE, warmup=WARMUP, active=steps, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write) as profiler:
        yield profiler.step
