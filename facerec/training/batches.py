"""What a global batch is made of: P identities x K faces, cut into G micro-batches of m faces.

A micro-batch is the unit of work, whatever the number of workers; so a run killed anywhere and resumed at another
world size trains on the same global batches. Legend: P identities a batch, K faces an identity, m faces a
micro-batch, G = P * K / m, W workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from facerec.errors import ConfigError

FEWEST, MOST = 8, 32
"""Faces of a micro-batch that ``auto`` looks for: statistics of fewer are noise, and more fill a small device."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """What a global batch is made of; the number of workers changes none of it."""

    p: int | Literal["auto"] = "auto"
    """Identities a global batch; auto is the largest that the data and the micro-batch allow, up to ``p_max``."""
    p_max: int = 64
    """The most that auto takes."""
    k: int = 4
    """Faces an identity."""
    micro_batch: int | Literal["auto"] = "auto"
    """Faces embedded at once, and the unit of BatchNorm statistics; must divide p * k. auto: an even cut, 8 to 32."""

    cache: bool = False
    """Gradient caching: memory for one micro-batch at a time, whatever the batch, for one forward more."""

    def __post_init__(self) -> None:
        if self.p != "auto" and self.p < 2:
            raise ConfigError(f"p is {self.p}; a batch needs at least 2 identities (--batch.p)")
        if self.p_max < 2:
            raise ConfigError(f"p_max is {self.p_max}; a batch needs at least 2 identities (--batch.p_max)")
        if self.k < 2:
            raise ConfigError(f"k is {self.k}; a pair needs at least 2 faces an identity (--batch.k)")
        if self.micro_batch == "auto":
            return
        if self.micro_batch < 2:
            raise ConfigError(
                f"micro_batch is {self.micro_batch}; BatchNorm needs at least 2 faces (--batch.micro_batch)"
            )
        if self.p != "auto" and self.p * self.k % self.micro_batch:
            raise ConfigError(
                f"batch {self.p * self.k} is not divisible by micro_batch {self.micro_batch} (p={self.p}, k={self.k}); "
                f"choose p as a multiple of {_step_of_p(self.k, self.micro_batch)} or another --batch.micro_batch"
            )

    def fit(self, identities: int) -> BatchShape:
        """The numbers, where ``identities`` can be trained on; ConfigError where there are too few for them."""
        if self.p != "auto":
            if self.p > identities:
                raise ConfigError(
                    f"p is {self.p} but {identities} training identities have 2 faces or more; "
                    f"choose --batch.p of at most {identities} or auto"
                )
            if (micro_batch := self._micro_batch(self.p)) < 2:
                raise ConfigError(
                    f"a batch of {self.p} x {self.k} = {self.p * self.k} faces has no divisor from 2 to {MOST} for its "
                    f"micro-batches; choose another --batch.p or --batch.k, or set --batch.micro_batch"
                )
            return BatchShape(self.p, self.k, micro_batch)
        most = min(identities, self.p_max)
        if most < 2:
            raise ConfigError(
                f"{identities} training identities have 2 faces or more; at least 2 are needed: add people or photographs"
            )
        if self.micro_batch == "auto":
            p = next((p for p in range(most, 1, -1) if self._micro_batch(p) >= FEWEST), most)
            return BatchShape(p, self.k, self._micro_batch(p))
        step = _step_of_p(self.k, self.micro_batch)
        if (p := most // step * step) < 2:
            raise ConfigError(
                f"{identities} training identities of {self.k} faces do not fill micro-batches of {self.micro_batch}; "
                f"choose --batch.micro_batch auto or {most * self.k}, or add people"
            )
        return BatchShape(p, self.k, self.micro_batch)

    def _micro_batch(self, p: int) -> int:
        """As asked for; or a half, a quarter... of the batch, so that ranks share evenly; or else any divisor."""
        if self.micro_batch != "auto":
            return self.micro_batch
        faces = p * self.k
        fits = [m for m in range(1, min(MOST, faces // 2) + 1) if faces % m == 0]
        even = [m for m in fits if m >= FEWEST and (faces // m).bit_count() == 1]
        return max(even or fits)


@dataclass(frozen=True)
class BatchShape:
    """The numbers of every global batch of a run."""

    p: int
    """Identities."""
    k: int
    """Faces an identity."""
    micro_batch: int
    """Faces a micro-batch."""

    @property
    def faces(self) -> int:
        """b, faces a global batch."""
        return self.p * self.k

    @property
    def groups(self) -> int:
        """G, micro-batches a global batch."""
        return self.faces // self.micro_batch

    def share(self, workers: int, rank: int) -> range:
        """The micro-batches a rank owns: contiguous, in rank order; the first ranks own one more where it is uneven."""
        if workers > self.groups:
            raise ConfigError(
                f"{workers} workers but {self.groups} micro-batches (p={self.p}, k={self.k}, "
                f"micro_batch={self.micro_batch}); choose fewer --num_workers or a smaller --batch.micro_batch"
            )
        each, more = divmod(self.groups, workers)
        start = rank * each + min(rank, more)
        return range(start, start + each + (rank < more))

    def sizes(self, workers: int) -> list[int]:
        """Faces of each rank's share, in rank order."""
        return [len(self.share(workers, rank)) * self.micro_batch for rank in range(workers)]


def _step_of_p(k: int, micro_batch: int) -> int:
    """P must be a multiple of this for P * K to be divisible by the micro-batch."""
    return int(micro_batch // np.gcd(k, micro_batch))
