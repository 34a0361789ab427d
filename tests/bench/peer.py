"""The peer of `make bench-learning`: pytorch-metric-learning as its own examples use it, in one process.

Faces, augmentation, network, head, precision and threads are ours; its are the sampler (MPerClassSampler), the miner,
the loss, and Adam at one learning rate throughout.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from facerec.models.embedder import build
from facerec.models.format import save_model
from facerec.models.images import normalize
from facerec.models.precision import full_or_half
from facerec.training.batches import BatchShape
from facerec.training.config import TrainConfig
from facerec.training.index import FaceIndex
from facerec.training.loader import FaceStore, Loader
from facerec.training.plan import make_plan
from facerec.training.schedule import Batch

PEERS = ("semi-hard", "multi-similarity")
"""TripletMarginMiner and TripletMarginLoss at 0.2 of their own distance, plain L2; MultiSimilarityMiner and
MultiSimilarityLoss as they come."""


@dataclass
class PerClass:
    """The library's sampler, in the place of a schedule: K faces of each of P people, drawn with all their faces at hand."""

    labels: list[int]
    """By row."""
    ordinals: list[int]
    """By row: which face of the dataset."""
    shape: BatchShape
    seed: int

    def __post_init__(self) -> None:
        from pytorch_metric_learning.samplers import MPerClassSampler

        np.random.seed(self.seed)  # the library draws from NumPy's global generator
        self._sampler = MPerClassSampler(self.labels, self.shape.k, self.shape.faces, len(self.labels))
        self._rows: list[int] = []

    def batch(self, _step: int) -> Batch:
        """The next one, whatever its number."""
        while len(self._rows) < self.shape.faces:
            self._rows += list(self._sampler)
        rows, self._rows = self._rows[: self.shape.faces], self._rows[self.shape.faces :]
        return Batch(
            np.array([self.ordinals[row] for row in rows]), np.array([self.labels[row] for row in rows])
        )


def train_peer(config: TrainConfig, kind: str, lr: float, seconds: float) -> float:
    """Train for so many seconds below ``config.run``, as ``model``; returns the faces seen."""
    torch.set_num_threads(config.threads)
    plan = make_plan(config)
    index, shape = plan.index(), plan.shape
    loader = Loader(
        store=FaceStore(plan.dataset, index),
        schedule=PerClass(*_faces(index, plan.identities), shape, config.seed),  # type: ignore[arg-type]
        side=config.model.side,
        augment=config.augment,
        seed=config.seed,
        processes=config.loader_process_count,
    )
    network = build(config.model, config.seed).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True)
    miner, loss = _losses(kind)
    seen, began = 0, time.monotonic()
    shares = loader.ahead(range(2**40), range(shape.groups))
    for share in shares:
        optimizer.zero_grad(set_to_none=True)
        with full_or_half(torch.device("cpu"), plan.precision):
            embeddings = network(normalize(share.images))
        value = loss(embeddings, share.labels, miner(embeddings, share.labels))
        value.backward()
        optimizer.step()
        seen += shape.faces
        if time.monotonic() - began > seconds:
            break
    shares.close()
    save_model(
        plan.uri("model"),
        network,
        config.model,
        plan.dataset.preprocessing,
        plan.about | {"steps": seen // shape.faces},
    )
    return seen


def _losses(kind: str) -> tuple[Any, Any]:
    from pytorch_metric_learning import losses, miners

    if kind == "multi-similarity":
        return miners.MultiSimilarityMiner(), losses.MultiSimilarityLoss()
    return miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard"), losses.TripletMarginLoss(
        margin=0.2
    )


def _faces(index: FaceIndex, people: Sequence[str]) -> tuple[list[int], list[int]]:
    """(labels, ordinals) of all faces of some people."""
    code = {index.identities.index(name): label for label, name in enumerate(people)}
    labels: list[int] = []
    ordinals: list[int] = []
    for identity, start, rows in zip(
        index.codes.tolist(), index.starts.tolist(), index.rows.tolist(), strict=True
    ):
        if identity in code:
            labels += [code[identity]] * rows
            ordinals += range(start, start + rows)
    return labels, ordinals
