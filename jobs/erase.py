"""Take a person or a photograph out of every artifact below some folders, and check what is left; exit 1 if anything is.

``erase.py --identity NAME | --source URI --root FOLDER [--root FOLDER ...] [--dry-run]``. What goes and what stays is
said in facerec/erasure/pipeline.py.
"""

from __future__ import annotations

import re
import sys

from facerec.cli import main
from facerec.erasure.pipeline import EraseConfig, erase


def run(config: EraseConfig) -> None:
    """Erase; print what is left, a line each, and exit with 1 if there is anything."""
    left = erase(config)
    for line in left:
        print(f"erase: {line}", flush=True)
    if left:
        sys.exit(1)


def flags(argv: list[str]) -> list[str]:
    """Each --root adds a folder, and --dry-run needs no value."""
    return [
        "--dry_run=true" if argument == "--dry-run" else re.sub(r"^--root(?==|$)", "--root+", argument)
        for argument in argv
    ]


if __name__ == "__main__":
    main("erase", EraseConfig, run, flags(sys.argv[1:]))
