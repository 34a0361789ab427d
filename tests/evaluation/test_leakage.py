"""Leakage: whoever the network has seen is found, by any spelling of the name and by any copy of a photograph."""

from __future__ import annotations

import numpy as np
import pytest

from facerec.evaluation.leakage import Seen, describe, find, photographs_of_people, plain
from facerec.phash import bits_for

HASHES = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 6)


def test_people_are_found_by_name_and_by_photograph() -> None:
    seen = Seen(
        np.array(["Ada Lovelace", "B"]), np.array([HASHES[0], HASHES[1]]), frozenset(["Ada Lovelace", "B"])
    )
    names = np.array(["ada_lovelace", "Renamed", "New"])
    leaks = find(set(names), names, np.array([HASHES[2], HASHES[1] ^ 0b1011, HASHES[3]]), seen)
    assert leaks.by_name == {"ada_lovelace": "Ada Lovelace"}
    assert leaks.by_photograph == {"Renamed": "B"}
    assert leaks.photographs == 1
    told = describe(leaks, seen, "exclude")
    assert (told["people_by_name"], told["people_by_photograph"]) == (1, 1)
    assert told["by_photograph"] == [{"scored": "Renamed", "seen": "B"}]


def test_who_is_found_both_ways_is_one_person() -> None:
    seen = Seen(np.array(["Ada"]), HASHES[:1], frozenset(["Ada"]))
    leaks = find({"ada"}, np.array(["ada"]), HASHES[:1], seen)
    told = describe(leaks, seen, "exclude")
    assert (told["people"], told["people_by_name"], told["people_by_photograph"]) == (1, 1, 1)


def test_of_many_pairs_only_what_chance_does_not_bring_is_a_copy() -> None:
    """Nine million pairs have four within 4 bits by chance: then 2 bits tell a copy, and the report says so."""
    random = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, (2, 3000))
    names = np.array([f"{at}" for at in range(3000)])
    random[1, 0], random[1, 1] = random[0, 5] ^ 0b1111, random[0, 6] ^ 0b11
    leaks = find(set(names), names, random[1], Seen(np.char.add("seen ", names), random[0], frozenset()))
    assert leaks.by_photograph == {"1": "seen 6"}
    assert (leaks.bits, bits_for(10**6), bits_for(10**12)) == (2, 4, 0)
    assert leaks.by_chance == pytest.approx(0.36)


def test_a_chain_of_likeness_is_no_leak() -> None:
    """Two scored faces bridge what is not alike: only the one near the face seen is a leak."""
    seen = Seen(np.array(["A"]), np.array([0]), frozenset("A"))
    leaks = find({"near", "far"}, np.array(["near", "far"]), np.array([0b1111, 0b11111111]), seen)
    assert leaks.people == {"near"}


def test_nothing_shared_is_nothing_found() -> None:
    seen = Seen(np.array(["A"]), HASHES[:1], frozenset("A"))
    assert not find({"B"}, np.array(["B"]), HASHES[1:2], seen).people
    nobody = Seen(np.array([], str), np.array([], np.int64), frozenset())
    assert not find({"B"}, np.array(["B"]), HASHES[1:2], nobody).people


def test_spelling_makes_no_other_person_but_other_scripts_do() -> None:
    assert plain("Jean-Luc_GODARD") == plain("jean luc godard")
    assert plain("Penélope Cruz") == plain("Penelope_Cruz")
    assert plain("黒澤明") != plain("小津安二郎")
    assert plain("?!") == "?!"


def test_photographs_of_two_people_are_never_one() -> None:
    labels = photographs_of_people(np.array(["a", "b", "a", "b"]), HASHES[[0, 0, 0, 1]])
    assert labels[0] == labels[2]
    assert len(set(labels[[0, 1, 3]].tolist())) == 3
