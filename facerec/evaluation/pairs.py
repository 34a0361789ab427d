"""Which pairs are looked at: LFW's, or those of the scored people themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facerec import scores, seeding, storage
from facerec.errors import SourceError
from facerec.scores import Floats, Ints

FACES = 3000
"""All pairs of at most so many faces are looked at: 4.5 million, 0.6 GB while they are scored."""
FOLDS, FOLD_PAIRS = 10, 300
"""Of the accuracy, as LFW has them: so many pairs of either kind a fold, where there are as many."""

HARDEST, CANDIDATES = 12, 5000
"""Pairs that the report names, and among how many it looks for some that share no face: one odd photograph is in many."""

Strings = NDArray[np.str_]


@dataclass(frozen=True)
class Pairs:
    """Pairs of faces: ``left`` and ``right`` are the people's ordinals [p], ``fold`` is -1 where a pair is in none [p]."""

    left: Ints
    right: Ints
    fold: Ints
    distances: Floats
    """Squared L2 [p]; infinite where a photograph has no face: then the pair is called two people, and counts."""
    rows: tuple[Ints, Ints]
    """Rows of the two faces, among those that the pairs were made of [p] each; -1 where a photograph has no face."""

    @property
    def same(self) -> NDArray[np.bool_]:
        """Whether a pair is of one person [p]."""
        return np.asarray(self.left == self.right)

    def only(self, keep: NDArray[np.bool_]) -> Pairs:
        """The pairs chosen [p]."""
        rows = self.rows[0][keep], self.rows[1][keep]
        return Pairs(self.left[keep], self.right[keep], self.fold[keep], self.distances[keep], rows)


def all_pairs(vectors: Floats, identities: Strings, seed: int) -> Pairs:
    """Every pair of a seeded sample of the faces [n, d], evenly over the people; folds are of people who share no other's."""
    names, person = np.unique(identities, return_inverse=True)
    keep = _sample(person, seed)
    person, rows = person[keep], vectors[keep].astype(np.float64)
    left, right = np.triu_indices(len(keep), k=1)
    distances = scores.squared_distances(rows, rows)[left, right]
    faces = keep[left].astype(np.int32), keep[right].astype(np.int32)
    left, right = person[left].astype(np.int32), person[right].astype(np.int32)
    return Pairs(left, right, _folds(left, right, len(names), seed), distances, faces)


def _sample(person: Ints, seed: int) -> Ints:
    """Rows of at most FACES faces: everybody's first, then everybody's second, and so on, in seeded order."""
    shuffled = seeding.generator("pairs", seed).permutation(len(person))
    order = shuffled[np.argsort(person[shuffled], kind="stable")]
    starts = np.searchsorted(person[order], person[order])
    turn = np.arange(len(order)) - starts
    rank = (
        np.argsort(turn, kind="stable") if len(set(person.tolist())) * 2 <= FACES else np.arange(len(order))
    )
    return np.sort(order[rank[:FACES]])


def _folds(left: Ints, right: Ints, people: int, seed: int) -> Ints:
    """As many pairs of one person as of two in each fold of people, FOLD_PAIRS at most; below two folds none."""
    count = min(FOLDS, people // 2)
    folds = np.full(len(left), -1, np.int16)
    if count < 2:
        return folds
    random = seeding.generator("folds", seed)
    of = random.permutation(people) % count
    together = np.where(of[left] == of[right], of[left], -1)
    for fold in range(count):
        kinds = [np.flatnonzero((together == fold) & ((left == right) == same)) for same in (True, False)]
        size = min(FOLD_PAIRS, *map(len, kinds))
        for kind in kinds:
            folds[random.choice(kind, size, replace=False)] = fold
    return folds


@dataclass(frozen=True)
class Photograph:
    """One as pairs.txt names it: Name/Name_0001.*"""

    name: str
    number: int


@dataclass(frozen=True)
class Listed:
    """A pairs file: one entry a pair, in its order."""

    left: tuple[Photograph, ...]
    right: tuple[Photograph, ...]
    fold: Ints


def read_pairs(uri: str) -> Listed:
    """Parse LFW's pairs.txt, or any of its folds: "folds<TAB>n" (or just "n"), then in each fold n pairs of one person
    (name, number, number) and n of two (name, number, name, number). Raises SourceError with the line at fault."""
    if not storage.exists(storage.absolute(uri)):
        raise SourceError(f"{uri} does not exist; name a file in the format of LFW's pairs.txt (--pairs)")
    lines = storage.read_bytes(storage.absolute(uri)).decode("utf-8", errors="replace").splitlines()
    folds, size = _header(uri, lines[0] if lines else "")
    body = [line for line in lines[1:] if line.strip()]
    if len(body) != folds * 2 * size:
        raise SourceError(
            f"{uri} says {folds} folds of {size} + {size} pairs, which is {folds * 2 * size} lines, and has {len(body)} (--pairs)"
        )
    pairs = [_parse(uri, number, line) for number, line in enumerate(body, start=2)]
    left, right = zip(*pairs, strict=True)
    return Listed(left, right, np.arange(len(pairs)) // (2 * size))


def _header(uri: str, line: str) -> tuple[int, int]:
    words = line.split()
    if len(words) not in (1, 2) or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise SourceError(
            f"{uri} line 1 is {line[:60]!r}; it must hold the number of folds and of pairs a fold, as LFW's pairs.txt does (--pairs)"
        )
    return (1, int(words[0])) if len(words) == 1 else (int(words[0]), int(words[1]))


def _parse(uri: str, number: int, line: str) -> tuple[Photograph, Photograph]:
    words = [word.strip() for word in (line.split("\t") if "\t" in line else line.split())]
    words = [words[0], words[1], words[0], words[2]] if len(words) == 3 else words
    if len(words) != 4 or not (words[1].isdecimal() and words[3].isdecimal()):
        raise SourceError(
            f"{uri} line {number} is {line[:60]!r}; it must be name, number, number or name, number, name, number (--pairs)"
        )
    return Photograph(words[0], int(words[1])), Photograph(words[2], int(words[3]))


def locate(photographs: set[Photograph], source_uris: list[str], folder: str) -> dict[Photograph, int]:
    """Rows of the photographs that have a face: those from .../Name/Name_0001.jpg, whatever the ending.

    Raises SourceError where one photograph has several faces, or where most are not there at all, which is a wrong
    folder and no failed detection.
    """
    wanted = {(each.name, f"{each.name}_{each.number:04d}"): each for each in photographs}
    rows: dict[Photograph, int] = {}
    for row, uri in enumerate(source_uris):
        parent, _, file = uri.rpartition("/")
        photograph = wanted.get((parent.rpartition("/")[2], file.rpartition(".")[0]))
        if photograph in rows:
            raise SourceError(
                f"{uri} has several faces in {folder}, and pairs need one a photograph; align without --faces all"
            )
        if photograph:
            rows[photograph] = row
    if len(rows) * 2 < len(photographs):
        example = min(wanted)
        raise SourceError(
            f"{folder} has {len(rows)} of the {len(photographs)} photographs that the pairs name (as {example[0]}/{example[1]}.jpg); "
            f"embed the folder that they are of (--embeddings), or name its pairs (--pairs)"
        )
    return rows


def given_pairs(listed: Listed, rows: dict[Photograph, int], vectors: Floats) -> Pairs:
    """The listed pairs with their distances; a photograph without a face is infinitely far from everything."""
    people = {
        name: at for at, name in enumerate(sorted({each.name for each in (*listed.left, *listed.right)}))
    }
    here, there = (np.array([rows.get(each, -1) for each in side]) for side in (listed.left, listed.right))
    distances = ((vectors[here].astype(np.float64) - vectors[there].astype(np.float64)) ** 2).sum(axis=1)
    distances[(here < 0) | (there < 0)] = np.inf
    left, right = (
        np.array([people[each.name] for each in side], np.int32) for side in (listed.left, listed.right)
    )
    return Pairs(left, right, listed.fold, distances, (here, there))


def hardest(pairs: Pairs, face_ids: list[str], identities: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The farthest faces of one person and the nearest of two, the worst first; no face stands twice in a list.

    ``face_ids`` and ``identities`` are of the faces that the pairs were made of.
    """
    found = {}
    for kind, chosen, worst in (("genuine", pairs.same, -1), ("impostor", ~pairs.same, 1)):
        places = np.flatnonzero(chosen & np.isfinite(pairs.distances))
        most = min(CANDIDATES, len(places))
        order = worst * pairs.distances[places]
        near = np.argpartition(order, most - 1)[:most] if most else np.empty(0, np.int64)
        used: set[int] = set()
        rows: list[dict[str, Any]] = []
        for place in places[near[np.argsort(order[near], kind="stable")]].tolist():
            sides = [int(side[place]) for side in pairs.rows]
            if len(rows) < HARDEST and not used & {*sides}:
                used |= {*sides}
                faces = [{"face_id": face_ids[row], "identity": identities[row]} for row in sides]
                rows.append({"faces": faces, "distance": float(pairs.distances[place])})
        found[kind] = rows
    return found
