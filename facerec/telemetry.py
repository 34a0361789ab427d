"""A log of JSON lines that survives kills: whole lines only, and a resumed run takes back what it will write again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from facerec import storage


class JsonLines:
    """Appends one object a line. On S3, which has no append, the small file is written whole each time."""

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
        with open(self._uri, "a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


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
