"""What a training run is told: the root of its configuration, and the optimizer's part of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from facerec.errors import ConfigError
from facerec.models.embedder import ModelConfig
from facerec.models.precision import Precision
from facerec.splits import SplitConfig
from facerec.training.augment import AugmentConfig
from facerec.training.batches import BatchConfig
from facerec.training.metric_learning import LibraryLoss
from facerec.training.mining import MiningConfig
from facerec.training.validation import ValidationConfig

INDIFFERENT = (
    *("faces", "run", "num_workers", "gpu", "threads", "loader_processes", "compile", "cuda_graphs"),
    "shared_forward",
    *("validation", "checkpoint_every", "keep", "log_every", "profile"),
)
"""Settings that may change between a run's attempts. The faces are pinned by their hash, so they may move."""


GPU_LOADER_PROCESSES = 4
"""Loader processes that ``auto`` takes for a worker with a GPU."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW; the learning rate rises linearly, then falls by half a cosine to zero."""

    lr: float = 1e-3
    """Highest learning rate."""
    warmup: int = 50
    """Steps of rise; at most a tenth of all steps are taken for it."""
    weight_decay: float = 1e-4
    """Decay of weight matrices; biases and normalisation are left alone."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr is {self.lr}; choose above 0 (--optimizer.lr)")
        if self.warmup < 0:
            raise ConfigError(f"warmup is {self.warmup}; choose 0 or more (--optimizer.warmup)")
        if self.weight_decay < 0:
            raise ConfigError(
                f"weight_decay is {self.weight_decay}; choose 0 or more (--optimizer.weight_decay)"
            )

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0: a pure function, so nothing of it is saved."""
        warmup = min(self.warmup, steps // 10)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Faces to a model. The result depends on nothing but the faces and these settings, at any number of workers."""

    faces: str = "faces"
    """Folder of aligned faces, local or s3://, as jobs/align.py leaves it."""
    run: str = "run"
    """Folder of this run: checkpoints, metrics, the untrained and the trained model."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Who is trained on and who is never seen."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """The global batch."""
    mining: MiningConfig = field(default_factory=MiningConfig)
    """The triplets."""
    library: LibraryLoss = field(default_factory=LibraryLoss)
    """A loss of pytorch-metric-learning in place of the triplets."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Changes of the training faces."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Which faces are scored at every scheduled checkpoint."""
    steps: int = 600
    """Global batches to train on. May grow: the same command with a larger number continues the run, finished or not, from
    its last checkpoint. From there on the learning rate follows the schedule of the larger number, so the result is not
    bit-equal to that of a run that was planned so long."""
    seed: int = 0
    """Decides initial weights, batches, augmentation and dropout."""
    precision: Precision = "auto"
    """bf16: matrix products in half precision, for faces to embeddings only. auto: bf16 on a GPU, and on a CPU where it
    is faster (not for a depthwise network); run.json keeps the choice."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then validated and saved; 0 for none. After t steps the decay
    is at most (1 + t) / (10 + t), so that a short run is not mostly its first weights."""
    num_workers: int | tuple[int, int] = 2
    """Ray workers that share each batch; [least, most] takes as many as there are; 0 trains here, without Ray."""
    gpu: bool = False
    """One GPU a worker (NCCL) instead of one CPU (gloo)."""
    checkpoint_every: int = 100
    """Steps between checkpoints: what a kill can cost."""
    keep: int = 2
    """Checkpoints kept; a second one is the way out of a damaged first."""
    log_every: int = 10
    """Steps between lines of metrics and progress."""
    profile: int = 0
    """Number of steps to trace into run/profile/, for Perfetto or chrome://tracing, after 10 steps that are not traced."""
    threads: int = 1
    """CPU threads a worker computes with."""
    loader_processes: int | Literal["auto"] = "auto"
    """Processes a worker decodes and augments with, ahead of the step; 0 for a thread of the training process, which
    makes every launch on a GPU slower. auto: 0 on a CPU, 4 with --gpu."""
    compile: bool = False
    """torch.compile of a forward and its backward: minutes at the start, for speed on a GPU."""
    cuda_graphs: bool = False
    """Replay the compiled kernels as CUDA graphs, without a launch for each; needs ``compile`` and ``gpu``. Parameters that
    the network does not use then decay like others, because their gradients are zeros."""
    shared_forward: int | Literal["auto"] = "auto"
    """Micro-batches at most that are embedded in one forward; statistics and dropout stay those of each micro-batch. auto:
    with ``compile`` on a GPU as many as fit its memory, else 1, which is faster on a CPU."""
    init: str | None = None
    """Folder of a model to start from; without it weights are drawn from the seed."""

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every", "keep", "log_every", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; choose 1 or more (--{name})")
        if self.shared_forward != "auto" and self.shared_forward < 1:
            raise ConfigError(
                f"shared_forward is {self.shared_forward}; choose auto, or 1 or more (--shared_forward)"
            )
        if self.cuda_graphs and not (self.compile and self.gpu):
            raise ConfigError(
                f"cuda_graphs needs compile and gpu, which are {self.compile} and {self.gpu} (--compile true --gpu true)"
            )
        if self.profile < 0:
            raise ConfigError(
                f"profile is {self.profile}; choose 0 for none, or a number of steps (--profile)"
            )
        if self.loader_process_count < 0:
            raise ConfigError(
                f"loader_processes is {self.loader_processes}; choose auto, 0 for a thread of the training process, or "
                "a number (--loader_processes)"
            )
        least, most = self.workers
        if least < 0 or most < least or (least == 0 and most):
            raise ConfigError(
                f"num_workers is {self.num_workers}; choose 0 (this process), a number, or [least, most] "
                "from 1 (--num_workers)"
            )
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema is {self.ema}; choose 0 for none, or a decay like 0.999 (--ema)")

    @property
    def workers(self) -> tuple[int, int]:
        """Least and most Ray workers; (0, 0) for this process."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers

    @property
    def loader_process_count(self) -> int:
        """Loader processes of each worker."""
        if self.loader_processes == "auto":
            return GPU_LOADER_PROCESSES if self.gpu else 0
        return self.loader_processes

    @property
    def augments_on_gpu(self) -> bool:
        """Whether the GPU augments the faces, which the loader then only decodes."""
        return self.gpu and self.augment is not None

    def decisive(self) -> dict[str, Any]:
        """The settings that decide the result, by flag: what a run folder belongs to. Of these only ``steps`` may grow."""
        settings: dict[str, Any] = {}
        for item in fields(self):
            if item.name not in INDIFFERENT:
                value = getattr(self, item.name)
                settings |= _flatten(
                    item.name, asdict(value) if hasattr(value, "__dataclass_fields__") else value
                )
        return settings


def _flatten(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {f"{name}.{key}": inner for key, inner in value.items()}
