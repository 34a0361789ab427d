"""Has the network seen whom we score? By name, however it is spelled, and by photographs that look the same."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facerec.phash import BY_CHANCE, bits_for, near_duplicates

Strings = NDArray[np.str_]
I64 = NDArray[np.int64]

LISTED = 100
"""Leaks listed by name in the report; all are counted."""


@dataclass(frozen=True)
class Seen:
    """Faces that shaped the network: trained on, or of the people who chose its checkpoint."""

    identities: Strings
    """[m]"""
    hashes: I64
    """[m], perceptual hashes."""
    people: frozenset[str]
    """Everybody in the run's record, also those without a face."""


@dataclass(frozen=True)
class Leaks:
    """Scored people the network has seen, and as whom."""

    by_name: dict[str, str]
    by_photograph: dict[str, str]
    photographs: int
    """Scored faces that are near-duplicates of faces seen."""
    bits: int
    """By which their hashes may differ: fewer the more pairs there are, or chance would find copies."""
    by_chance: float
    """Scored faces that are expected to be taken for copies by chance."""

    @property
    def people(self) -> set[str]:
        """All of them."""
        return {*self.by_name, *self.by_photograph}


def find(people: set[str], identities: Strings, hashes: I64, seen: Seen) -> Leaks:
    """Compare scored people, and their faces [n], with those seen."""
    spelled = {plain(name): name for name in sorted(seen.people)}
    by_name = {name: spelled[plain(name)] for name in sorted(people) if plain(name) in spelled}
    pairs = len(hashes) * len(seen.hashes)
    bits = bits_for(pairs)
    twins = _twins(hashes, seen.hashes, bits)
    by_photograph = {str(identities[ours]): str(seen.identities[theirs]) for ours, theirs in twins}
    return Leaks(by_name, by_photograph, len({ours for ours, _ in twins}), bits, pairs * BY_CHANCE[bits])


def plain(name: str) -> str:
    """A name without case, accents and punctuation: Jean-Luc_GODARD is Jean Luc Godard."""
    folded = unicodedata.normalize("NFKD", name).casefold()
    return "".join(letter for letter in folded if letter.isalnum()) or name


def describe(leaks: Leaks | None, seen: Seen | None, action: str) -> dict[str, Any]:
    """The report's part; None says that nobody could look."""
    if leaks is None or seen is None:
        return {
            "checked": False,
            "reason": "no --run was named, so nobody knows whom the network has seen",
        }
    return {
        "checked": True,
        "action": action,
        "people_seen": len(seen.people),
        "faces_seen": len(seen.hashes),
        "near_duplicate_bits": leaks.bits,
        "photographs_by_chance": leaks.by_chance,
        "people": len(leaks.people),
        "people_by_name": len(leaks.by_name),
        "people_by_photograph": len(leaks.by_photograph),
        "photographs": leaks.photographs,
        "by_name": _listed(leaks.by_name),
        "by_photograph": _listed(leaks.by_photograph),
    }


def photographs_of_people(identities: Strings, hashes: I64) -> I64:
    """Each face's group of near-duplicate photographs of its person [n]: no two people share a group."""
    labels, used = np.empty(len(hashes), np.int64), 0
    order = np.argsort(identities, kind="stable")
    for rows in np.split(order, np.unique(identities[order], return_index=True)[1][1:]):
        labels[rows] = used + near_duplicates(hashes[rows])
        used = int(labels[rows].max()) + 1
    return labels


def _twins(ours: I64, theirs: I64, bits: int) -> list[tuple[int, int]]:
    """Rows of ``ours`` and of ``theirs`` whose hashes differ in at most ``bits``; each of ours once.

    Groups are chains of likeness; only their links between both sides count.
    """
    groups = near_duplicates(np.concatenate([ours, theirs]), bits)
    mine, other = groups[: len(ours)], groups[len(ours) :]
    order = np.argsort(other, kind="stable")
    firsts, lasts = (np.searchsorted(other[order], mine, side) for side in ("left", "right"))
    found = []
    for row in np.flatnonzero(firsts < lasts).tolist():
        candidates = order[firsts[row] : lasts[row]]
        apart = np.bitwise_count(theirs[candidates] ^ ours[row])
        if apart.min() <= bits:
            found.append((row, int(candidates[apart.argmin()])))
    return found


def _listed(leaks: dict[str, str]) -> list[dict[str, str]]:
    return [{"scored": ours, "seen": theirs} for ours, theirs in sorted(leaks.items())[:LISTED]]
