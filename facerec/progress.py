"""How far a job over photographs is, as people read it in a log."""

from __future__ import annotations

import time
from typing import Any

from facerec.telemetry import Prometheus

SAY_EVERY_S = 5.0
"""Seconds between two lines of progress, at least: a job log is read by people."""


class Progress:
    """How far a job over photographs is, in a line every few seconds, and as gauges."""

    def __init__(self, job: str, total: int, gauges: Prometheus) -> None:
        self._job, self._gauges = job, gauges
        self._total, self._photographs, self._faces, self._rejects = total, 0, 0, 0
        self._started = self._said = time.monotonic()

    def add(self, part: dict[str, Any]) -> None:
        """Count a part that was written; say so if the last line is old enough."""
        self._photographs += part["photographs"]
        self._faces += part["faces"]
        self._rejects += part["rejects"]
        if time.monotonic() - self._said >= SAY_EVERY_S and self._photographs < self._total:
            self.say()

    def say(self) -> None:
        """Print where the run stands."""
        self._said = time.monotonic()
        seconds = self._said - self._started
        self._gauges.write(
            {
                "photographs": self._photographs,
                "photographs_left": self._total - self._photographs,
                "faces": self._faces,
                "rejects": self._rejects,
                "photographs_per_s": self._photographs / seconds,
            }
        )
        rest = (self._total - self._photographs) * seconds / max(self._photographs, 1)
        print(
            f"{self._job}: {self._photographs}/{self._total} photographs, {self._faces} faces, {self._rejects} rejects; "
            f"{self._photographs / seconds:.1f} photographs/s, {self._faces / seconds:.1f} faces/s; "
            + (f"{duration(rest)} to go" if rest else f"took {duration(seconds)}"),
            flush=True,
        )


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 7 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
