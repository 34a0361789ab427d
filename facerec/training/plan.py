"""Everything a run needs to know before it does any work, checked; only ``claim`` and ``record`` write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

import facerec
from facerec import documents, publish, storage
from facerec.errors import ConfigError, DatasetError, MismatchError, SourceError
from facerec.lock import Fence
from facerec.models.embedder import build
from facerec.models.format import load_model, read_card
from facerec.models.precision import settled
from facerec.publish import Dataset
from facerec.schema import require_same_preprocessing
from facerec.splits import Split, split_identities
from facerec.training import state
from facerec.training.batches import BatchShape
from facerec.training.config import TrainConfig
from facerec.training.index import FaceIndex
from facerec.training.schedule import Schedule


@dataclass(frozen=True)
class Plan:
    """A checked run. Small and picklable: it travels to the workers, who stand in a folder of Ray's own."""

    config: TrainConfig
    """With absolute folders: a relative one is of the driver's folder."""
    dataset: Dataset
    split: Split
    identities: tuple[str, ...]
    """The training identities with two faces or more, sorted; a label is a place in it."""
    shape: BatchShape
    """The numbers of its global batches."""
    precision: str
    """fp32 or bf16: what auto came to when the run began."""
    fence: Fence | None = None
    """The hold on the run folder; rank 0 writes behind it. None for workers that run without a job."""

    @property
    def about(self) -> dict[str, Any]:
        """What the run's models say of how they came to be."""
        return {
            "faces": self.dataset.digest,
            "generation": self.dataset.generation,
            "steps": self.config.steps,
            "seed": self.config.seed,
        }

    @property
    def workers(self) -> tuple[int, int]:
        """Least and most Ray workers: beyond the micro-batches there is nothing to share."""
        least, most = self.config.workers
        return least, min(most, max(least, self.shape.groups))

    def index(self) -> FaceIndex:
        """The dataset's index, read."""
        return FaceIndex.read(self.dataset)

    def schedule(self, index: FaceIndex) -> Schedule:
        """The run's sequence of global batches."""
        return Schedule(index, self.identities, self.shape, self.config.seed)

    @property
    def loss_at_collapse(self) -> float | None:
        """The loss where all distances are equal; None where a loss of another library takes the triplets' place."""
        return (
            None
            if self.config.library.loss
            else self.config.mining.loss_at_collapse(self.shape.p, self.shape.k)
        )

    def uri(self, *names: str) -> str:
        """A name below the run folder."""
        return storage.join(self.config.run, *names)

    def require_held(self) -> None:
        """Raise BusyError if the run folder now belongs to another run."""
        if self.fence:
            self.fence.require()

    def write(self, uri: str, data: bytes) -> storage.Written:
        """Write a file of the run folder; raise BusyError if the folder now belongs to another run."""
        return self.fence.write(uri, data) if self.fence else storage.write_bytes(uri, data)


def make_plan(config: TrainConfig) -> Plan:
    """Check the whole run; each fault is one FacerecError that names the flag. Writes nothing."""
    config = absolute(config)
    if config.workers == (0, 0) and config.gpu:
        _require_gpu()
    if config.library.loss:
        config.library.build()
    dataset = _pinned_dataset(config)
    index = FaceIndex.read(dataset)
    faces = dict(zip(index.identities, index.faces.tolist(), strict=True))
    split, identities, shape = fitted(faces, config, "faces")
    network = _checked_network(config, dataset)
    return Plan(config, dataset, split, identities, shape, _precision(config, network))


def fitted(
    faces: Mapping[str, int], config: TrainConfig, what: str
) -> tuple[Split, tuple[str, ...], BatchShape]:
    """The split, the identities to train on, and the batches, for identities with so many ``faces`` each.

    Raises FacerecError with the numbers if they cannot be trained on. ``what`` is the word for the faces: before
    alignment, photographs are counted in their place, because a photograph gives one face at most.
    """
    split = split_identities(faces, config.split)
    identities = tuple(sorted(name for name in split.train if faces[name] >= 2))
    if len(identities) < 2:
        raise SourceError(
            f"{len(identities)} of the {len(split.train)} identities to train on have 2 {what} or more, and 2 are "
            f"needed (the other {len(faces) - len(split.train)} of {len(faces)} are held out for the score, "
            f"--split.unseen); add photographs or people to the source"
        )
    shape = config.batch.fit(len(identities))
    shape.share(max(1, config.workers[0]), rank=0)
    _check_shares(config, shape)
    return split, identities, shape


def absolute(config: TrainConfig) -> TrainConfig:
    """With absolute folders: workers stand elsewhere."""
    init = None if config.init is None else storage.absolute(config.init)
    return replace(config, faces=storage.absolute(config.faces), run=storage.absolute(config.run), init=init)


def _check_shares(config: TrainConfig, shape: BatchShape) -> None:
    """Each share needs two people; a loss of the library sees the whole batch."""
    shares = config.mining.shares
    if shares > 1 and config.library.loss:
        raise ConfigError(
            f"shares is {shares} and loss {config.library.loss}, which takes the whole batch; leave one out (--mining.shares, --library.loss)"
        )
    if 2 * shares > shape.p:
        raise ConfigError(
            f"{shares} shares of {shape.p} people; each needs 2: choose --mining.shares of at most {shape.p // 2}"
        )


def claim(plan: Plan, fence: Fence) -> Plan:
    """Make the run folder ours, or confirm that it is; gives the plan with its fence.

    Raises MismatchError if the folder is another's, or was planned for more steps.
    """
    if claimed_steps(plan.config) != plan.config.steps:
        publish.write_claim(fence, plan.config.decisive())
    return replace(plan, fence=fence)


def claimed_steps(config: TrainConfig) -> int | None:
    """The steps that the run folder was last planned for, or None if it has not begun; writes nothing.

    Raises MismatchError if it is another's, or was planned for more steps, and ConfigError if it cannot be written.
    """
    uri = storage.join(config.run, "claim.json")
    before = storage.read_json(uri).get("steps") if storage.exists(uri) else None
    steps = before if isinstance(before, int) else config.steps
    if not publish.claimed(config.run, config.decisive() | {"steps": steps}, "--run"):
        return None
    if config.steps < steps:
        raise MismatchError(
            f"{config.run} was planned for {steps} steps and --steps is {config.steps}; steps can grow but not shrink: "
            f"choose --steps of at least {steps} or another --run"
        )
    return steps


def record(plan: Plan) -> None:
    """Write ``run.json``: who trains now, with what."""
    data = storage.json_bytes(
        {
            "code_version": facerec.__version__,
            "config": asdict(plan.config),
            "batch": asdict(plan.shape),
            "precision": plan.precision,
            "split": asdict(plan.split),
            "faces": {
                "folder": plan.dataset.folder,
                "generation": plan.dataset.generation,
                "digest": plan.dataset.digest,
            },
            "preprocessing": plan.dataset.preprocessing,
            "planned": _planned(plan.config),
        }
    )
    plan.write(plan.uri("run.json"), data)


def _planned(config: TrainConfig) -> list[dict[str, int]]:
    """How many steps the run was planned for, from which step on: one entry for each time that --steps grew."""
    before = _recorded(config)
    if before is None:
        return [{"after": 0, "steps": config.steps}]
    first = before.get("config", {}).get("steps", config.steps)  # a run of a version that kept no history
    planned: list[dict[str, int]] = before.get("planned") or [{"after": 0, "steps": first}]
    if planned[-1]["steps"] == config.steps:
        return planned
    done = state.newest_step(storage.join(config.run, "checkpoints"))
    return [*planned, {"after": done, "steps": config.steps}]


def _pinned_dataset(config: TrainConfig) -> Dataset:
    """The faces, at the generation that the run began on; MismatchError where they are not those any more."""
    dataset = publish.open_dataset(config.faces, "jobs/align.py")
    record = _recorded(config)
    if record is None:
        return dataset
    pinned = record["faces"]
    if dataset.digest != pinned["digest"]:
        try:
            dataset = publish.open_dataset(config.faces, "jobs/align.py", pinned["generation"])
        except DatasetError:
            raise MismatchError(
                f"{config.run} began on generation {pinned['generation']} of {config.faces}, which is gone (somebody was erased "
                f"from it, or it was removed; generation {dataset.generation} is there): choose another --run"
            ) from None
    if dataset.digest != pinned["digest"]:
        raise MismatchError(
            f"{config.run} began on faces with digest {pinned['digest'][:12]} and {config.faces} has "
            f"{dataset.digest[:12]} (generation {dataset.generation}); choose another --run or the same --faces"
        )
    return dataset


def _recorded(config: TrainConfig) -> dict[str, Any] | None:
    """run.json, where the run has begun before."""
    return documents.read_run(config.run)


def _precision(config: TrainConfig, network: nn.Module) -> str:
    """What the run began with, so that it goes on alike on another machine."""
    record = _recorded(config)
    if config.precision == "auto" and record is not None:
        return str(record["precision"])
    return settled(config.precision, network, config.gpu)


def _checked_network(config: TrainConfig, dataset: Dataset) -> nn.Module:
    """The network as the run begins with it; a fault of --model or --init is one line."""
    if config.init is None:
        return build(config.model, config.seed)
    card = read_card(config.init)
    theirs, ours = asdict(card.config), asdict(config.model)
    if differing := [key for key in sorted(ours) if ours[key] != theirs[key]]:
        key = differing[0]
        raise MismatchError(
            f"--init {config.init} has {key} {theirs[key]!r} and this run has {ours[key]!r}; "
            f"choose --model.{key} {theirs[key]} or another --init"
        )
    require_same_preprocessing(card.preprocessing, dataset.preprocessing, config.init, dataset.folder)
    return load_model(config.init)[0]


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise ConfigError(
            "gpu is true but torch finds no GPU here; leave out --gpu or choose --num_workers 1"
        )
