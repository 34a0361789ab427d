"""The settings of embedding: which faces, which model, how fast."""

from __future__ import annotations

from dataclasses import dataclass

from facerec import pool
from facerec.errors import ConfigError
from facerec.models.backends import Backend, settled_backend
from facerec.models.precision import Precision


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Faces and a model to embeddings."""

    faces: str = "faces"
    """Folder of aligned faces, as jobs/align.py leaves it."""
    model: str = "run/model"
    """Folder of the model: run/model, or run/untrained for the control."""
    out: str = "embeddings"
    """Where the vectors go; the same command again goes on, or adds what is new."""
    batch_size: int = 32
    """Faces a forward pass; 256 pays on a GPU."""
    precision: Precision = "auto"
    """bf16: matrix products in half precision. auto: bf16 on a GPU, and on a CPU where it is faster (not for a
    depthwise network); a folder keeps the choice of its first run."""
    backend: Backend = "auto"
    """What runs the network on a CPU: auto is openvino where it is installed."""
    flip: bool = False
    """Average each vector with its mirrored face's: twice the time."""
    actors: int = 0
    """Embedding actors at most, one core each; 0 takes all the cores there are, and those that join."""
    gpu: bool = False
    """Embed on GPUs, and with --photos detect there too: each actor has one core and a share of a GPU."""
    actors_per_gpu: int = 8
    """Actors that share one GPU: the cores that feed it. Each takes about 0.5 GB of GPU memory for its CUDA context, and
    more for what it computes."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.actors < 0:
            raise ConfigError(
                f"batch_size is {self.batch_size} and actors {self.actors}; need --batch_size >= 1 and --actors >= 0"
            )
        pool.require_valid(self)
        if self.gpu and self.backend == "openvino":
            settled_backend(self.backend, self.gpu)
