"""`make bench-scale`: a million photographs through listing, parts, compaction and publishing, none of them read.

A fake aligner makes a tiny face or a reject of each URI, so that what is measured is all the rest: the driver's
memory above all.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from facerec import ledger, publish
from facerec.alignment import compaction, pipeline, sources
from facerec.alignment.config import AlignConfig
from facerec.session import ray_session
from tests.bench.targets import Row, conclude, megabytes
from tests.support.aligner import FakeAligner

PEOPLE, EACH = 20_000, 50
T = TypeVar("T")


def main() -> None:
    """Run every step once, print, and exit 1 where a target is missed."""
    rows = [Row("driver: memory with all code loaded", megabytes("VmRSS"), "MB")]

    def timed(what: str, step: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = step()
        rows.append(Row(what, time.perf_counter() - began, "s"))
        rows.append(Row("  most memory so far", megabytes("VmHWM"), "MB"))
        return result

    with (
        tempfile.TemporaryDirectory() as folder,
        ray_session(),
        publish.exclusive(folder, "--out") as fence,
    ):
        config = AlignConfig(source="/memory/", out=folder)
        listing = timed("list", lambda: sources._from_files("/memory/photographs", files()))
        photographs = listing.photographs
        missing = timed(
            "find what is missing, of nothing", lambda: ledger.missing(publish.parts(folder), photographs)
        )
        timed(
            "align, fake, and write parts",
            lambda: list(pipeline.written_parts(fence, missing, config, FakeAligner)),
        )
        left = timed(
            "find what is missing, of all", lambda: ledger.missing(publish.parts(folder), photographs)
        )
        dataset = timed("compact and publish", lambda: compaction.compact(fence, listing, {}, 0))
        timed("see that it is finished", lambda: ledger.is_current(folder, photographs))
    counts = dataset.manifest["counts"]
    rows += [
        Row("photographs", counts["photographs"], "", at_least=PEOPLE * EACH),
        Row(
            "  neither with a face nor rejected",
            counts["photographs"] - counts["photographs_with_faces"] - sum(counts["image_rejects"].values()),
            "",
            at_most=0,
        ),
        Row("  still missing", left.num_rows, "", at_most=0),
        Row("driver: most memory", megabytes("VmHWM"), "MB", at_most=2048),
    ]
    conclude("bench-scale", rows, [f"{PEOPLE:,} people of {EACH} photographs, parts of {config.part}"])


def files() -> Iterator[sources.File]:
    """Names and versions as a walk through folders gives them."""
    for person in range(PEOPLE):
        for number in range(EACH):
            name = f"person-{person:06d}/photograph {number:04d} of person {person:06d}.jpg"
            yield name, f"{100_000 + number}-17{person:017d}"


if __name__ == "__main__":
    main()
