"""Run a function on several gloo ranks of this machine and collect what each returns."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ddp(world_size: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
    """``fn(*args)`` on each of ``world_size`` ranks, within a process group; results in rank order.

    ``fn`` must be a function of a module, for the ranks are fresh processes. World size 1 is a group of one.
    """
    store = dist.TCPStore("127.0.0.1", 0, world_size, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(world_size, store.port, folder, fn, args), nprocs=world_size, join=True)
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(world_size)]


def _rank(rank: int, world_size: int, port: int, folder: str, fn: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, world_size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        Path(folder, str(rank)).write_bytes(pickle.dumps(fn(*args)))
        dist.barrier()
    finally:
        dist.destroy_process_group()
    os._exit(0)  # an interpreter that goes down with gloo's threads aborts now and then on a loaded machine
