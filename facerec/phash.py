"""Perceptual hash: photographs that look the same have hashes that differ in few bits; and groups of those.

The DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010): the signs
of the 8 x 8 lowest frequencies of a 32 x 32 grey image against their median.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, count

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

I64 = NDArray[np.int64]

NEAR_DUPLICATE_BITS = 4
"""Faces whose hashes differ in so few bits are taken for one photograph. Hashes differ in an even number of bits.

Measured on aligned faces of LFW and Pins: of 10.2 million pairs of different people 0, 4, 34, 335 and 2,145 lie
within 2, 4, 6, 8 and 10 bits, and of copies at JPEG quality 70 0.61, 0.82, 0.92, 0.95 and 0.99 (scaled by 0.7 and
found again by the detector: 0.38, 0.66, 0.84, 0.88 and 0.95). At 4 a face meets a stranger once in 2.5 million.
"""

BY_CHANCE = {4: 4e-7, 2: 4e-8, 0: 4e-9}
"""Of pairs of faces of different people, the share within so many bits. Measured at 4 (16 of 42 million aligned faces of
LFW, Pins and IMFDB, none a copy); below it extrapolated, as each two bits less are a tenth (none of 42 million)."""

PENDING_LINKS = 2**22
"""Links held before they are merged into groups: what bounds the memory where everything looks alike."""


def perceptual_hash(image: NDArray[np.uint8]) -> int:
    """64-bit hash of an RGB uint8 image [h, w, 3], as a signed integer (Arrow int64)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    bits = low > np.median(low[1:])  # the first coefficient is the mean brightness and would dominate
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)


def bits_for(pairs: int) -> int:
    """The bits within which, of so many pairs, chance finds less than one; 0 where it finds more even in equal hashes."""
    return next((bits for bits, share in BY_CHANCE.items() if pairs * share < 1), 0)


def near_duplicates(hashes: I64, bits: int = NEAR_DUPLICATE_BITS) -> I64:
    """Each hash's group, numbered as they appear: hashes linked by chains of at most ``bits`` differing bits.

    Exact, by multi-index hashing (Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index
    Hashing", 2012): the 64 bits are dealt to blocks, and two hashes that differ in ``bits`` of them agree in all
    blocks but ``bits``. So each choice of these is a key, and only hashes of equal keys are compared.
    """
    values, back = np.unique(hashes, return_inverse=True)
    groups = np.arange(len(values))
    for key in _keys(bits, len(values)):
        groups = _linked(values, key, bits, groups)
    _, first, back = np.unique(groups[back], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[back]


def _keys(bits: int, size: int) -> Iterator[int]:
    """Masks of the bits that are compared, of so many bits each that random hashes rarely share a key."""
    blocks = next(n for n in count(bits + 1) if 64 * (n - bits) >= n * np.log2(max(size, 1)))
    dealt = [sum(1 << bit for bit in range(block, 64, blocks)) for block in range(blocks)]
    for chosen in combinations(dealt, blocks - bits):
        yield int(np.uint64(sum(chosen)).astype(np.int64))


def _linked(values: I64, key: int, bits: int, groups: I64) -> I64:
    """The groups, merged where hashes of equal keys differ in few bits."""
    masked = values & key
    order = np.argsort(masked)
    values, masked = values[order], masked[order]
    at = np.arange(len(values))
    ends = np.searchsorted(masked, masked, side="right")
    links, pending, step = [(at[:0], at[:0])], 0, 0
    while len(at):
        step += 1  # each hash with the next of its key, then with the next but one, and so on
        within = at + step < ends
        at, ends = at[within], ends[within]
        near = at[np.bitwise_count(values[at] ^ values[at + step]) <= bits]
        here, there = order[near], order[near + step]
        new = groups[here] != groups[there]
        links.append((here[new], there[new]))
        pending += int(new.sum())
        if pending > PENDING_LINKS:
            groups, links, pending = _merged(groups, links), links[:1], 0
    return _merged(groups, links)


def _merged(groups: I64, links: list[tuple[I64, I64]]) -> I64:
    """Groups joined by links between their hashes."""
    ends = tuple(groups[np.concatenate(side)] for side in zip(*links, strict=True))
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(len(groups), len(groups)))
    joined: I64 = connected_components(graph, directed=False)[1].astype(np.int64)[groups]
    return joined
