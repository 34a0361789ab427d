"""How well the network separates people during training.

The validation people are neither trained on nor the unseen people of the final score: they choose the best checkpoint, so
they cannot judge it too. If no people are kept back for validation, some of the training people are scored instead: that
shows whether the run learns at all, and chooses no checkpoint. Each rank embeds a part of the faces and compares them with
all, so that no rank waits for another one that does all the work.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from facerec.errors import ConfigError
from facerec.models.images import decode_jpeg, normalize, resize
from facerec.models.precision import full_or_half
from facerec.training.gather import all_reduce, gather, world
from facerec.training.index import FaceIndex, Ints
from facerec.training.loader import FaceStore

BINS = 4096
"""Of squared distances from 0 to 4: a threshold is known to 0.001."""

FAR = 1e-2
"""False accept rate at which true accepts are reported, where ten false accepts or more carry it."""


KEPT_BYTES = 300 * 2**20
"""The most decoded faces that a worker keeps between checkpoints: the default 2,000 faces at 224 px take 287 MiB."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Which faces are scored at every scheduled checkpoint: of the validation people, or of training people if none are
    kept back for validation."""

    faces: int = 10
    """Faces an identity at most: those that lie together."""
    most: int = 2000
    """Faces in all, shared by the workers."""

    def __post_init__(self) -> None:
        if self.faces < 2:
            raise ConfigError(f"faces is {self.faces}; a pair needs 2 (--validation.faces)")
        if self.most < 4:
            raise ConfigError(f"most is {self.most}; choose 4 or more (--validation.most)")


class Validation:
    """One rank's part of the faces that are scored: decoded at the first score if KEPT_BYTES hold them, else JPEG bytes."""

    def __init__(
        self,
        store: FaceStore,
        index: FaceIndex,
        identities: Sequence[str],
        config: ValidationConfig,
        side: int,
    ) -> None:
        ordinals, self._labels = chosen(index, identities, config)
        rank, workers = world()
        cuts = [len(ordinals) * r // workers for r in range(workers + 1)]
        self._sizes = [stop - start for start, stop in itertools.pairwise(cuts)]
        self._first, self._side = cuts[rank], side
        self._jpegs = store.read(ordinals[cuts[rank] : cuts[rank + 1]])
        self._keeps = 3 * side**2 * len(self._jpegs) <= KEPT_BYTES
        self._kept: list[Tensor] = []

    def __bool__(self) -> bool:
        """Whether there is anybody to look at."""
        return sum(self._sizes) > 0

    def score(self, network: nn.Module, device: torch.device, precision: str) -> dict[str, float]:
        """``nearest_neighbour``: share of faces whose nearest other is of the same person; ``faces``: how many were scored;
        ``tar@0.01``. Collective.

        The network comes back in the mode it came in.
        """
        mode = network.training
        with torch.no_grad(), full_or_half(device, precision):
            network.eval()
            local = [network(normalize(images.to(device))) for images in self._batches()]
            network.train(mode)
        rows = torch.cat(local) if local else torch.empty(0, 128, device=device)
        return compare(
            rows, gather(rows.float(), self._sizes), torch.from_numpy(self._labels).to(device), self._first
        )

    def _batches(self) -> Iterable[Tensor]:
        """The faces, uint8 [up to 64, side, side, 3]."""
        if self._keeps and self._jpegs:
            self._kept, self._jpegs = list(self._decoded()), []
        return self._kept or self._decoded()

    def _decoded(self) -> Iterator[Tensor]:
        for at in range(0, len(self._jpegs), 64):
            jpegs = self._jpegs[at : at + 64]
            faces = [resize(decode_jpeg(jpeg, self._side), self._side) for jpeg in jpegs]
            yield torch.from_numpy(np.stack(faces))


def chosen(index: FaceIndex, identities: Sequence[str], config: ValidationConfig) -> tuple[Ints, Ints]:
    """Ordinals and labels of the faces looked at: each identity's longest spans first, at most ``faces`` of them."""
    people = max(1, config.most // config.faces)
    ordinals, labels = [], []
    for label, name in enumerate(identities[:people]):
        spans = np.flatnonzero(index.codes == bisect.bisect_left(index.identities, name))
        spans = spans[np.argsort(-index.rows[spans], kind="stable")]
        own = np.concatenate([index.starts[s] + np.arange(index.rows[s]) for s in spans])[: config.faces]
        if len(own) >= 2:
            ordinals.append(own)
            labels.append(np.full(len(own), label))
    if not ordinals:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(ordinals), np.concatenate(labels)


def compare(local: Tensor, everyone: Tensor, labels: Tensor, first: int) -> dict[str, float]:
    """Scores over all pairs of ``everyone`` [b, d], of which ``local`` [n, d] are rows from ``first``. Collective."""
    own = torch.arange(first, first + len(local), device=everyone.device)
    distances = (2 - 2 * local.float() @ everyone.T).clamp(0, 4)
    distances[torch.arange(len(local)), own] = torch.inf
    same = labels[own][:, None] == labels[None]
    hits = torch.gather(same, 1, distances.argmin(dim=1, keepdim=True)).sum() if len(local) else same.sum()
    finite = distances.isfinite()
    genuine, impostor = (_histogram(distances[finite & pairs]) for pairs in (same, ~same))
    counts = all_reduce(torch.cat([hits[None], genuine, impostor]))
    scores = {"nearest_neighbour": float(counts[0]) / len(everyone), "faces": float(len(everyone))}
    rate = _true_accept_rate(counts[1 : 1 + BINS].cpu().numpy(), counts[1 + BINS :].cpu().numpy())
    return scores if rate is None else scores | {f"tar@{FAR}": rate}


def _histogram(distances: Tensor) -> Tensor:
    bins = (distances * (BINS / 4)).long().clamp_max(BINS - 1)
    return torch.bincount(bins, minlength=BINS)


def _true_accept_rate(genuine: Ints, impostor: Ints) -> float | None:
    """At the highest bin edge below which the share of impostors is at most FAR; None where too few pairs carry it."""
    if impostor.sum() / 2 * FAR < 10:  # every pair is counted from both its ends
        return None
    allowed = np.searchsorted(np.cumsum(impostor), impostor.sum() * FAR, side="right")
    return float(genuine[:allowed].sum() / genuine.sum())
