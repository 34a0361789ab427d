"""Where a run's numbers go: a log of JSON lines that survives kills, TensorBoard, and Prometheus."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from facerec import storage


class JsonLines:
    """Appends one object a line; a resumed run takes back what it will write again. On S3, which has no append, the small file is written whole each time."""

    def __init__(self, uri: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Open the log and drop the lines already there that ``keep`` refuses, and a torn last line."""
        self._uri = uri
        self._lines = [_line(record) for record in read_json_lines(uri) if keep(record)]
        storage.write_bytes(uri, "".join(self._lines).encode())

    def append(self, record: dict[str, Any]) -> None:
        """Write one line."""
        line = _line(record)
        if storage.is_s3(self._uri):
            self._lines.append(line)
            storage.write_bytes(self._uri, "".join(self._lines).encode())
            return
        with storage.writing(self._uri), open(self._uri, "a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


class TensorBoard:
    """The same numbers as curves: ``tensorboard --logdir FOLDER``. Local folders only."""

    def __init__(self, folder: str, start: int) -> None:
        """Events of steps after ``start``, which a resumed run writes again, are hidden."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=start + 1, flush_secs=10)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """One point a curve."""
        for name, value in numbers.items():
            self._writer.add_scalar(name.replace("@", "_"), value, step)  # else it says so, at every name

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


class Prometheus:
    """The same numbers as gauges of Ray's metrics endpoint, ``ray_PREFIX_name``; only within a Ray cluster."""

    def __init__(self, prefix: str, run: str) -> None:
        self._prefix, self._tags = prefix, {"run": run}
        self._gauges: dict[str, Any] = {}

    def write(self, numbers: dict[str, float]) -> None:
        """Set each gauge."""
        from ray.util.metrics import Gauge

        for name, value in numbers.items():
            if name not in self._gauges:
                plain = "".join(letter if letter.isalnum() else "_" for letter in name)
                self._gauges[name] = Gauge(f"{self._prefix}_{plain}", tag_keys=("run",))
            self._gauges[name].set(value, self._tags)


def flat(numbers: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers by path: {"d_ap": [1, 2]} to {"d_ap/0": 1, "d_ap/1": 2}; what is no number is left out."""
    paths: dict[str, float] = {}
    for key, value in numbers.items():
        if isinstance(value, list):
            value = {str(place): inner for place, inner in enumerate(value)}
        if isinstance(value, dict):
            paths |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            paths[prefix + key] = float(value)
    return paths


def read_json_lines(uri: str) -> list[dict[str, Any]]:
    """All whole lines; none where the file is missing. A line torn by a kill is left out."""
    if not storage.exists(uri):
        return []
    records = []
    for line in storage.read_bytes(uri).decode(errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, sort_keys=True) + "\n"
