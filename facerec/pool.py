"""Pools of actors that work on whole parts: one core each, and on GPUs a share of one.

Several actors share a GPU because a part is work for cores too: photographs are decoded, scaled and encoded there. One
actor alone would leave its GPU idle most of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import pyarrow as pa

from facerec.errors import ConfigError

MOST_PER_GPU = 100
"""Actors on one GPU: their CUDA contexts alone would take 50 GB."""


class Pooled(Protocol):
    """The settings of a stage that say which actors it has. None of them decides a result."""

    @property
    def actors(self) -> int:
        """Actors at most; 0 is no limit."""

    @property
    def gpu(self) -> bool:
        """Whether each has a share of a GPU."""

    @property
    def actors_per_gpu(self) -> int:
        """How many share one."""


def require_valid(config: Pooled) -> None:
    """Raise ConfigError if the actors that share a GPU are too few or too many."""
    if not 1 <= config.actors_per_gpu <= MOST_PER_GPU:
        raise ConfigError(
            f"actors_per_gpu is {config.actors_per_gpu}; it must be 1 to {MOST_PER_GPU} (--actors_per_gpu)"
        )


def require_gpu(config: Pooled, flag: str = "--gpu") -> None:
    """Raise ConfigError if the stage needs a GPU and a Ray of this machine alone has none: it would wait for ever."""
    from facerec import session

    if config.gpu and session.alone() and not session.resources("GPU"):
        raise ConfigError(
            f"gpu is true, and Ray finds 0 GPUs on this machine where at least 1 is needed; leave out {flag}"
        )


def say_if_waiting(config: Pooled, stage: str) -> None:
    """Print one line if the stage needs a GPU that the cluster does not have yet. The cluster may grow."""
    from facerec import session

    if config.gpu and not session.resources("GPU"):
        print(
            f"{stage}: waiting: gpu is true, and the cluster has 0 GPUs now; if none will join, leave out --gpu",
            flush=True,
        )


def each(config: Pooled) -> str:
    """What an actor takes, for a plan."""
    return f"one core and 1/{config.actors_per_gpu} GPU each" if config.gpu else "one core each"


def worked(
    config: Pooled, parts: list[pa.Table], worker: type, arguments: tuple[Any, ...]
) -> Iterator[dict[str, Any]]:
    """Call a ``worker``, an actor made of ``arguments``, with each part, ``packed``; yields the rows that it returns."""
    from facerec import session

    if parts:
        blocks = session.on_whole_blocks([packed(part) for part in parts])
        yield from blocks.map_batches(
            worker, fn_constructor_args=arguments, **options(config, len(parts))
        ).iter_rows()


def options(config: Pooled, parts: int) -> dict[str, Any]:
    """Ray Data's options of the actors: as many as there are parts and free cores for.

    They are for ``packed`` parts: with GPUs Ray Data wants batches by rows, and would cut and join parts to fill them.
    """
    import ray.data

    most = min(config.actors or parts, parts)
    return {
        "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        "batch_size": 1,
        "batch_format": "pyarrow",
        "num_cpus": 1,
        "num_gpus": share(config.actors_per_gpu) if config.gpu else None,
    }


def share(actors: int) -> float:
    """The part of a GPU that each of ``actors`` takes.

    Ray counts in units of 1/10,000 and rounds. Rounding down lets all of them fit: six of 0.1667 do not.
    """
    return math.floor(10_000 / actors) / 10_000


def packed(part: pa.Table) -> pa.Table:
    """A part of any rows as one row."""
    rows = pa.concat_arrays(part.to_struct_array().chunks)
    return pa.table({"part": pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)})


def unpacked(batch: pa.Table) -> pa.Table:
    """The part that one row holds."""
    return pa.Table.from_struct_array(pa.concat_arrays(batch["part"].chunks).flatten())
