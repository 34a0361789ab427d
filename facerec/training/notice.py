"""A drain notice: a node with one of our workers will be taken away, as spot machines are, some seconds to minutes later.

Ray Train tells of it by a question that all ranks must ask together, through an actor; so it is asked every few
seconds and not every step. A checkpoint is written at once, as notices may come late, and one more shortly before the
end, where the end is known; Ray Train starts again from the last one when the node is gone.
"""

from __future__ import annotations

import time
from typing import Any

from facerec.training.gather import from_first, world

LOOK_S = 5.0
"""Seconds between two questions; a notice comes 30 s (Google Cloud, Azure) to 120 s (AWS) ahead."""


class Notice:
    """Whether there is a new one."""

    def __init__(self, under_ray: bool, start: int) -> None:
        """``start``: steps done so far."""
        self._under_ray = under_ray
        self._next, self._last = start + 1, (start, time.monotonic())
        self._known: set[str] = set()
        self._ends_at: float | None = None

    def come(self, done: int) -> bool:
        """Whether a checkpoint is due. Collective at the steps where it looks; rank 0's clock decides for all."""
        if not self._under_ray or done < self._next:
            return False
        import ray.train

        due: bool = self._due(done, ray.train.get_preemption_info())
        due, self._next = from_first((due, self._next_look(done)))
        return due

    def _due(self, done: int, info: Any) -> bool:
        going = set(info.preempted_node_ids) - self._known if info else set()
        if going:
            self._known |= going
            self._ends_at = info.deadline_ms / 1000 if info.deadline_ms else None
            left = f" in {self._ends_at - time.time():.0f} s" if self._ends_at else ""
            if world()[0] == 0:
                print(
                    f"train: {len(going)} node(s) with ranks {info.preempted_ranks} will be taken away{left}: "
                    f"checkpoint after step {done}",
                    flush=True,
                )
            return True
        if self._ends_at and time.time() > self._ends_at - 2 * LOOK_S:
            self._ends_at = None
            return True
        return False

    def _next_look(self, done: int) -> int:
        """The step LOOK_S from now, at the pace since the last look."""
        (before, then), now = self._last, time.monotonic()
        self._last = (done, now)
        return done + max(1, round((done - before) * LOOK_S / max(now - then, 1e-6)))
