"""The alignment stage: photographs in, aligned faces and rejects out, as Ray Data over parts.

The sorted photographs are cut into parts. A part is one block all along and one atomic file at the end, so a run
killed anywhere goes on where it stopped: what finished parts hold is known from their rows, and only the rest is
cut into parts again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from facerec import access, ledger, lock, nodes, pool, publish, schema, storage
from facerec.alignment import compaction, sources
from facerec.alignment.aligner import Aligner
from facerec.alignment.config import AlignConfig
from facerec.alignment.sources import Listing
from facerec.errors import ConfigError
from facerec.lock import Fence
from facerec.photographs import in_order
from facerec.progress import Progress
from facerec.telemetry import Prometheus

ACTOR_GIB = 1.5
"""The most an actor holds (see decoding.py)."""
DRIVER_BYTES = 1600
"""A photograph costs the driver at most, beside half a GiB of code: `make bench-scale` holds a million to 2 GiB."""

MakeAligner = Callable[[AlignConfig], Callable[[pa.Table], pa.Table]]
"""A class like :class:`Aligner`, for those who bring another."""


def align_source(config: AlignConfig, listing: Listing | None = None) -> publish.Dataset:
    """Align what is not aligned yet, compact, publish. Raises SourceError, MismatchError or BusyError before work, and
    StorageError where no photograph can be opened.

    ``listing`` is what ``listed`` returned, for callers that looked at it before.
    """
    listing = listing or listed(config)
    access.require_some(listing.photographs, "--source")
    out = storage.absolute(config.out)
    pool.require_gpu(config)
    with publish.exclusive(out, "--out") as fence:
        publish.claim(fence, config.deciding(), "--out")
        nodes.require_shared(out, storage.absolute(config.source))
        missing = ledger.missing(publish.parts(out), listing.photographs)
        print(
            f"align: {listing.photographs.num_rows} photographs listed ({listing.ignored} other files ignored), "
            f"{missing.num_rows} to align",
            *(f"align: {note}" for note in listing.notes()),
            sep="\n",
            flush=True,
        )
        if not missing.num_rows and ledger.is_current(out, listing.photographs):
            print("align: finished already, nothing new in the source", flush=True)
            return publish.open_dataset(out, "jobs/align.py")
        if missing.num_rows:
            pool.say_if_waiting(config, "align")
            progress, unavailable = Progress("align", missing.num_rows, Prometheus("facerec_align", out)), 0
            with nodes.NodeSeconds() as held:
                for part in written_parts(fence, missing, config):
                    progress.add(part)
                    unavailable += part["unavailable"]
                    if part["unavailable"] == part["photographs"]:
                        access.require_some(listing.photographs, "--source")
                    lock.require_held(out)
            progress.say()
            print(f"align: {held.of(missing.num_rows, 'photographs')}", flush=True)
            if unavailable == missing.num_rows and ledger.is_current(out, listing.photographs):
                print("align: nothing new: the same photographs cannot be opened as before", flush=True)
                return publish.open_dataset(out, "jobs/align.py")
        about = {"config": asdict(config), "preprocessing": config.preprocessing.to_json()}
        dataset = compaction.compact(fence, listing, about, config.seed)
        ledger.say_unavailable("align", dataset.manifest["counts"])
        return dataset


def plan(config: AlignConfig, listing: Listing | None = None) -> dict[str, object]:
    """What align_source would do, for people; raises what it would, and writes nothing."""
    listing, out = listing or listed(config), storage.absolute(config.out)
    access.require_some(listing.photographs, "--source")
    publish.claimed(out, config.deciding(), "--out")
    missing = ledger.missing(publish.parts(out), listing.photographs).num_rows
    parts = -(-missing // config.part)
    finished = not missing and ledger.is_current(out, listing.photographs)
    return {
        "photographs": f"{listing.photographs.num_rows:,} ({listing.ignored:,} other files ignored)",
        **({"noticed": "; ".join(listing.notes())} if listing.notes() else {}),
        "identities": pc.count_distinct(listing.photographs["identity"]).as_py(),
        "to align": f"{missing:,} photographs in {parts:,} parts of up to {config.part}",
        "workers": f"up to {min(config.actors or parts, parts):,} actors, {pool.each(config)}, as the cluster has them",
        "memory": f"{ACTOR_GIB} GiB an actor, {0.5 + listing.photographs.num_rows * DRIVER_BYTES / 2**30:.1f} GiB the driver",
        "result": f"{config.out} " + ("is finished already" if finished else "gets a new generation"),
    }


def listed(config: AlignConfig, flag: str = "--source") -> Listing:
    """The source's photographs, without names if every face is taken. Raises ConfigError or SourceError.

    ``flag`` is what names the source in their messages.
    """
    if not config.source:
        raise ConfigError(f"no photographs given; name a folder per person or a manifest ({flag})")
    listing = sources.list_photographs(config.source, flag)
    return _without_names(listing) if config.faces == "all" else listing


def _without_names(listing: Listing) -> Listing:
    """Each photograph once: a name belongs to a photograph's subject, not to all its faces."""
    table = listing.photographs
    ours = table.set_column(1, schema.PHOTOGRAPHS.field("identity"), pa.nulls(table.num_rows, pa.string()))
    once = ours.group_by(schema.PHOTOGRAPHS.names).aggregate([]).cast(schema.PHOTOGRAPHS)
    return replace(listing, photographs=in_order(once))


def written_parts(
    fence: Fence, photographs: pa.Table, config: AlignConfig, aligner: MakeAligner = Aligner
) -> Iterator[dict[str, Any]]:
    """Align and write part by part; yields the counts of each as it is finished.

    Actors of one core, and a share of a GPU if ``config.gpu``: from one up to ``config.actors`` as the cluster has room.
    """
    parts = [photographs.slice(at, config.part) for at in range(0, photographs.num_rows, config.part)]
    yield from pool.worked(config, parts, PartAligner, (config, fence, aligner))


class PartAligner:
    """The job's actor: aligns a part and writes it at once, so that only its counts travel.

    Writing as a stage of its own would cost half of a small cluster: Ray Data keeps it a core, which a detector then
    lacks, however little the stage asks for.
    """

    def __init__(self, config: AlignConfig, fence: Fence, aligner: MakeAligner) -> None:
        self._aligner, self._fence = aligner(config), fence

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A packed part of schema.PHOTOGRAPHS rows to one row of counts."""
        photographs = pool.unpacked(batch)
        return publish.write_part(self._fence, photographs, lambda: self._aligner(photographs))
