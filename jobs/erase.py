"""A person or a photograph out of every artifact below some folders, and a scan that proves it; exit 1 where it does not.

``erase.py --identity NAME | --source URI --root FOLDER [--root FOLDER ...] [--dry-run]``. What goes and what stays is
said in facerec/erasure/pipeline.py.
"""

from __future__ import annotations

import re
import sys

from facerec.cli import main
from facerec.erasure.pipeline import EraseConfig, erase


def run(config: EraseConfig) -> None:
    """Erase; print each file that still mentions them, and leave with 1 where there is one."""
    left = erase(config)
    for uri in left:
        print(f"erase: STILL MENTIONED in {uri}", flush=True)
    if left:
        sys.exit(1)
    if not config.dry_run:
        print(f"erase: no file below {', '.join(config.root)} mentions them any more")


def flags(argv: list[str]) -> list[str]:
    """Each --root adds a folder, and --dry-run needs no value."""
    return [
        "--dry_run=true" if argument == "--dry-run" else re.sub(r"^--root(?==|$)", "--root+", argument)
        for argument in argv
    ]


if __name__ == "__main__":
    main("erase", EraseConfig, run, flags(sys.argv[1:]))
