"""Who is trained on and who is never seen: a pure function of the names, so no column and no file is needed.

Identities are ranked by a salted hash: adding people later moves nobody who was there, except across the cut.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from facerec.errors import ConfigError, SourceError

SMALL = 50
"""Below this many identities, a fixed fraction leaves too few people to score on."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which identities the network never sees."""

    unseen: float = 0.2
    """Fraction of the identities held out; under 50 identities at least max(3, a quarter) are."""
    validation: float = 0.1
    """Fraction of the others kept back to watch the training and choose its best checkpoint; none under 50 of them."""
    salt: str = "facerec"
    """Another salt is another split."""

    def __post_init__(self) -> None:
        if not 0 < self.unseen < 1:
            raise ConfigError(f"unseen is {self.unseen}; choose a fraction between 0 and 1 (--split.unseen)")
        if not 0 <= self.validation < 1:
            raise ConfigError(
                f"validation is {self.validation}; choose a fraction from 0 to below 1 (--split.validation)"
            )


@dataclass(frozen=True)
class Split:
    """Identities in hash order; every identity is in exactly one of the three."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    """Never trained on, and not scored in the end: they choose the checkpoint."""
    unseen: tuple[str, ...]


def split_identities(identities: Iterable[str], config: SplitConfig) -> Split:
    """Rank the identities by salted hash; the first ones are unseen.

    Raises SourceError where fewer than five identities exist: two to train against each other, three to score.
    """
    ranked = sorted(set(identities), key=lambda name: _rank(config.salt, name))
    count = len(ranked)
    if count < 5:
        raise SourceError(
            f"{count} identities found; at least 5 are needed (2 to train on, 3 unseen to score); add people to the source"
        )
    unseen = round(count * config.unseen)
    if count < SMALL:
        unseen = max(unseen, 3, math.ceil(count / 4))
    unseen = min(max(unseen, 1), count - 2)
    rest = ranked[unseen:]
    validation = round(len(rest) * config.validation) if len(rest) >= SMALL else 0
    return Split(
        train=tuple(rest[validation:]), validation=tuple(rest[:validation]), unseen=tuple(ranked[:unseen])
    )


def _rank(salt: str, name: str) -> bytes:
    return hashlib.sha256(f"{salt}\x1f{name}".encode()).digest()
