"""What a benchmark prints and leaves: measured values beside their targets."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One measured value; ``at_least`` and ``at_most`` are its target, if it has one."""

    what: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def missed(self) -> bool:
        """Whether there is a target and the value is beyond it."""
        below = self.at_least is not None and not self.value >= self.at_least
        return below or (self.at_most is not None and not self.value <= self.at_most)

    @property
    def target(self) -> str:
        """The target in words."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"


def megabytes(field: str, process: int | None = None) -> float:
    """VmRSS, what this process (or another one) holds, or VmHWM, the most it held, in MiB."""
    lines = Path(f"/proc/{process or 'self'}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def conclude(name: str, rows: list[Row], notes: list[str]) -> None:
    """Print the table, write build/NAME.json, and exit 1 where a target is missed."""
    width = max(len(row.what) for row in rows)
    for row in rows:
        verdict = "MISSED" if row.missed else ""
        print(f"{row.what:{width}}  {row.value:10.4g} {row.unit:8} {row.target:10} {verdict}".rstrip())
    for note in notes:
        print(note)
    out = Path("build") / f"{name}.json"
    out.parent.mkdir(exist_ok=True)
    table = [asdict(row) | {"missed": row.missed} for row in rows]
    out.write_text(json.dumps({"rows": table, "notes": notes}, indent=1) + "\n")
    print(f"{name}: {out}")
    sys.exit(any(row.missed for row in rows))
