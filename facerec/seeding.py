"""Randomness as a pure function of names: nothing is saved, nothing is restored.

Every random choice is drawn from a generator keyed by what it is for, e.g. ``(seed, step, micro_batch)``, so a
run resumed anywhere, at any number of workers, draws the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(*key: int | str) -> int:
    """A 63-bit seed from a key; equal keys give equal seeds on every machine and Python version."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*key: int | str) -> np.random.Generator:
    """A NumPy generator seeded by :func:`derive`."""
    return np.random.default_rng(derive(*key))
