"""A grid of training runs as parallel trials on the cluster: what a batch, a miner or a margin is worth on people never seen.

Every cell trains the same faces with its own settings, at equal faces seen, steps, or seconds. A cell that is finished
is not run again, one that was killed goes on from its checkpoint, and one that fails is a row with its reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray
from trial import Equal, forget_attempts, has_begun, try_cell

from facerec import lock, nodes, publish, storage
from facerec.cli import main
from facerec.errors import ConfigError
from facerec.grid import cell_id, cells, with_settings
from facerec.lock import Fence
from facerec.reporting.experiment import write_page
from facerec.session import ray_session
from facerec.training.config import TrainConfig
from facerec.training.plan import absolute

OWN = {"faces", "run", "steps", "num_workers", "gpu"}
OWN_INSTEAD = "--faces, --equal with --amount, and --gpus say it for all cells"


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Many training runs that differ in the settings of a grid."""

    faces: str
    """Folder of aligned faces; the split leaves people that no cell sees."""
    out: str = "experiment"
    """Where cells, results.parquet and experiment.html go; the same command again goes on."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Values of settings by the flags of jobs/train.py, as {"batch.p": [8, 32], "mining.shares": [1, 4], "seed": [0, 1]}."""
    equal: Equal = "faces"
    """What all cells get the same of."""
    amount: float = 20_000
    """How much of it."""
    x: str | None = None
    """The setting that the page's charts run over: the grid's first, where none is named."""
    cpus: float = 1.0
    """Cores of a trial, also a fraction."""
    gpus: float = 0.0
    """GPUs of a trial, also a fraction."""
    train: TrainConfig = TrainConfig()
    """What all cells share; each trains in its own process."""

    def __post_init__(self) -> None:
        if self.amount <= 0 or self.cpus <= 0 or self.gpus < 0:
            raise ConfigError(
                f"amount is {self.amount}, cpus {self.cpus}, gpus {self.gpus}; choose --amount and --cpus above 0, --gpus from 0"
            )
        if own := sorted(set(self.grid) & OWN):
            raise ConfigError(f"{own[0]} is not a cell's to choose; {OWN_INSTEAD} (grid)")
        if self.train.gpu and not self.gpus:
            raise ConfigError("train.gpu is true and gpus 0; say what a trial takes, like 1 or 0.5 (--gpus)")
        if self.x is not None and self.x not in self.grid:
            raise ConfigError(f"x is {self.x}, but the grid has {', '.join(self.grid) or 'nothing'} (--x)")


def run(config: ExperimentConfig) -> None:
    """Train and score what is missing, then write results.parquet and the page."""
    faces = publish.open_dataset(config.faces, "jobs/align.py")
    out, grid = storage.absolute(config.out), cells(config.grid)
    own = replace(config.train, faces=faces.folder, num_workers=0, gpu=config.gpus > 0)
    if own.loader_processes == "auto":  # trials that run at the same time have the cores that Ray gives them
        own = replace(own, loader_processes=max(0, int(config.cpus) - 1))
    shared = absolute(own)
    for cell in grid:
        with_settings(shared, cell)  # a fault of the grid, before anything is trained
    settings = {name: getattr(config, name) for name in ("equal", "amount")}
    with ray_session(), lock.exclusive(out, "--out") as fence:
        train = {f"train.{name}": value for name, value in shared.decisive().items() if name not in OWN}
        publish.claim(fence, {**settings, "faces": faces.digest, **train}, "--out")
        nodes.require_shared(out, faces.folder)
        # A process a cell, so that its memory is its own; one that dies with its node is tried again.
        trial = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=-1, max_calls=1)(try_cell)
        results, left = [_finished(_folder(out, cell)) for cell in grid], {}
        for number, cell in enumerate(grid):
            if results[number] is None:
                folder = _folder(out, cell)
                forget_attempts(folder)
                left[trial.remote(with_settings(shared, cell), config.equal, config.amount, folder)] = number
        print(f"experiment: {len(grid)} cells, {len(left)} to run", flush=True)
        while left:
            (done,), _ = ray.wait(list(left), num_returns=1)
            number = left.pop(done)
            results[number] = _result(done, fence, _folder(out, grid[number]))
            _say(grid[number], results[number], len(left))
    rows = [cell | result for cell, result in zip(grid, results, strict=True)]
    storage.write_table(storage.join(out, "results.parquet"), _table(rows))
    x = config.x or next(iter(config.grid), "")
    page = write_page(storage.join(out, "experiment.html"), rows, list(config.grid), x, settings)
    print(f"experiment: {page}")


def _folder(out: str, cell: dict[str, Any]) -> str:
    return storage.join(out, "cells", cell_id(cell))


def _finished(folder: str) -> Any:
    """A cell's result, where it has come to one."""
    uri = storage.join(folder, "result.json")
    return storage.read_json(uri) if storage.exists(uri) else None


def _result(done: Any, fence: Fence, folder: str) -> dict[str, Any]:
    """What a trial came to. One that was broken off, or never began to train, is a row with its reason and not kept: the
    same command tries again, perhaps after its fault was mended.
    """
    try:
        result: dict[str, Any] = ray.get(done)
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()[-1][:300]
        return {"error": f"{said}; the same command tries again"}
    if "error" not in result or has_begun(folder):
        fence.write_json(storage.join(folder, "result.json"), result)
    return result


def _say(cell: dict[str, Any], result: dict[str, Any], left: int) -> None:
    said = result.get("error") or (
        f"SVM {result['svm']:.3f}, nearest neighbour {result['nearest_neighbour']:.3f} (untrained {result['untrained']:.3f}), "
        f"{result['seconds']:.0f} s, {result['verdict']}"
    )
    print(f"experiment: {json.dumps(cell)}: {said}; {left} to go", flush=True)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    """A column each of anybody's values; one of several types is text, as "auto" beside numbers."""
    flat = [_flat(row) for row in rows]
    columns = {
        name: [row.get(name) for row in flat] for name in dict.fromkeys(name for row in flat for name in row)
    }
    for name, values in columns.items():
        if len({type(value) for value in values if value is not None}) > 1:
            columns[name] = [None if value is None else str(value) for value in values]
    return pa.table(columns)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a table: a list of two ends as two columns, other lists and mappings as JSON."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name.endswith("_interval"):
            flat |= {
                f"{name}_{end}": edge
                for end, edge in zip(("low", "high"), value or (None, None), strict=True)
            }
        else:
            flat[name] = json.dumps(value) if isinstance(value, list | dict) else value
    return flat


if __name__ == "__main__":
    main("experiment", ExperimentConfig, run)
