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
    salt: str = "facerec"
    """Another salt is another split."""

    def __post_init__(self) -> None:
        if not 0 < self.unseen < 1:
            raise ConfigError(f"unseen is {self.unseen}; choose a fraction between 0 and 1 (--split.unseen)")


@dataclass(frozen=True)
class Split:
    """Identities in hash order; every identity is in exactly one of the two."""

    train: tuple[str, ...]
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
    return Split(train=tuple(ranked[unseen:]), unseen=tuple(ranked[:unseen]))


def _rank(salt: str, name: str) -> bytes:
    return hashlib.sha256(f"{salt}\x1f{name}".encode()).digest()
