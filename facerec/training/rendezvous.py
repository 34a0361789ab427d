"""How the workers of a local Ray meet: by a file. Torch's store, by which they meet elsewhere, listens on all interfaces."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)


@dataclass
class MeetByFile(TorchConfig):
    """Ray Train's setting for workers that are all on one machine."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets up the process group on the workers."""
        return _ByFile


class _ByFile(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """As Ray's own, with a file that only this user can read. Torch removes it when the last worker has left."""
        file, path = tempfile.mkstemp(prefix="meet-", dir=os.environ.get("RAY_TMPDIR"))
        os.close(file)
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend="nccl" if gpus else "gloo",
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method=f"file://{path}",
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
        )
