"""Attacks on facerec, one module per area; ``make attack`` runs every module of this folder.

Each module has a function ``attacks() -> Iterator[Attempt]``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    """One attack that was tried."""

    what: str
    """The attack, in a few words."""
    succeeded: bool
    """Whether it did harm: one success is enough for ``make attack`` to exit with 1."""
    detail: str = ""
    """What was seen, for the reader of the table."""
