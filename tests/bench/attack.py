"""`make attack`: attack facerec on this machine, print what was tried, and exit 1 where an attack succeeds."""

from __future__ import annotations

import importlib
import pkgutil
import time

from tests.bench import attacks
from tests.bench.targets import Row, conclude

LIMIT_S = 300
"""The command is meant to be run often: all attacks together take at most five minutes."""


def main() -> None:
    """Run the attacks of every module in ``tests/bench/attacks``."""
    started, rows, notes = time.monotonic(), [], []
    for module in sorted(pkgutil.iter_modules(attacks.__path__), key=lambda module: module.name):
        area = importlib.import_module(f"{attacks.__name__}.{module.name}")
        for attempt in area.attacks():
            what = f"{module.name}: {attempt.what}"
            print(f"{what}: {'SUCCEEDED' if attempt.succeeded else 'refused'}. {attempt.detail}", flush=True)
            rows.append(Row(what, attempt.succeeded, "success", at_most=0))
            notes += [f"{what}: {attempt.detail}"] if attempt.succeeded else []
    rows.append(Row("attacks", len(rows), "", at_least=1))
    rows.append(Row("time", time.monotonic() - started, "s", at_most=LIMIT_S))
    conclude("attack", rows, notes)


if __name__ == "__main__":
    main()
