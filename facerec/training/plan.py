"""Everything a run needs to know before it does any work, checked; nothing here writes, but for claiming the folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import facerec
from facerec import publish, storage
from facerec.errors import ConfigError, DatasetError, MismatchError
from facerec.models.embedder import build
from facerec.models.format import read_card
from facerec.publish import Dataset
from facerec.schema import require_same_preprocessing
from facerec.splits import Split, split_identities
from facerec.training.config import TrainConfig
from facerec.training.index import FaceIndex
from facerec.training.schedule import BatchShape, Schedule, trainable


@dataclass(frozen=True)
class Plan:
    """A checked run. Small and picklable: it travels to the workers."""

    config: TrainConfig
    dataset: Dataset
    split: Split
    identities: tuple[str, ...]
    """The training identities with two faces or more, sorted; a label is a place in it."""
    shape: BatchShape
    """The numbers of its global batches."""

    @property
    def about(self) -> dict[str, Any]:
        """What the run's models say of how they came to be."""
        return {
            "faces": self.dataset.digest,
            "generation": self.dataset.generation,
            "steps": self.config.steps,
            "seed": self.config.seed,
        }

    def index(self) -> FaceIndex:
        """The dataset's index, read."""
        return FaceIndex(self.dataset.read("index"))

    def schedule(self, index: FaceIndex) -> Schedule:
        """The run's sequence of global batches."""
        return Schedule(index, self.identities, self.shape, self.config.seed)

    def uri(self, *names: str) -> str:
        """A name below the run folder."""
        return storage.join(storage.absolute(self.config.run), *names)


def make_plan(config: TrainConfig) -> Plan:
    """Check the whole run; each fault is one FacerecError that names the flag. Writes nothing."""
    if config.num_workers == 0 and config.gpu:
        _require_gpu()
    dataset = _pinned_dataset(config)
    index = FaceIndex(dataset.read("index"))
    split = split_identities(index.identities, config.split)
    identities = trainable(index, split.train)
    shape = config.batch.fit(len(identities))
    shape.share(max(1, config.num_workers), rank=0)
    plan = Plan(config, dataset, split, tuple(identities), shape)
    _check_network(config, dataset)
    return plan


def record(plan: Plan) -> None:
    """Claim the run folder for these settings and write ``run.json``; raises MismatchError where it is another's."""
    publish.claim(plan.uri(), plan.config.decisive(), "--run")
    storage.write_json(
        plan.uri("run.json"),
        {
            "code_version": facerec.__version__,
            "config": asdict(plan.config),
            "batch": asdict(plan.shape),
            "split": asdict(plan.split),
            "faces": {
                "folder": plan.dataset.folder,
                "generation": plan.dataset.generation,
                "digest": plan.dataset.digest,
            },
            "preprocessing": plan.dataset.preprocessing,
        },
    )


def _pinned_dataset(config: TrainConfig) -> Dataset:
    """The faces, at the generation that the run began on; MismatchError where they are not those any more."""
    dataset = publish.open_dataset(config.faces, "jobs/align.py")
    uri = storage.join(storage.absolute(config.run), "run.json")
    if not storage.exists(uri):
        return dataset
    pinned = storage.read_json(uri)["faces"]
    if dataset.generation != pinned["generation"]:
        try:
            dataset = publish.open_dataset(config.faces, "jobs/align.py", pinned["generation"])
        except DatasetError as error:
            raise MismatchError(
                f"{config.run} began on generation {pinned['generation']} of the faces, which is gone ({error}); "
                "choose another --run"
            ) from None
    if dataset.digest != pinned["digest"]:
        raise MismatchError(
            f"{config.run} began on faces with digest {pinned['digest'][:12]} and {config.faces} has "
            f"{dataset.digest[:12]} (generation {dataset.generation}); choose another --run or the same --faces"
        )
    return dataset


def _check_network(config: TrainConfig, dataset: Dataset) -> None:
    if config.init is None:
        build(config.model, config.seed)
        return
    card = read_card(config.init)
    theirs, ours = asdict(card.config), asdict(config.model)
    if differing := [key for key in sorted(ours) if ours[key] != theirs[key]]:
        key = differing[0]
        raise MismatchError(
            f"--init {config.init} has {key} {theirs[key]!r} and this run has {ours[key]!r}; "
            f"choose --model.{key} {theirs[key]} or another --init"
        )
    require_same_preprocessing(card.preprocessing, dataset.preprocessing, config.init, dataset.folder)


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "gpu is true but torch finds no GPU here; leave out --gpu or choose --num_workers 1"
        )
