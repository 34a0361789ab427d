"""An aligner that reads nothing, and parts as it leaves them."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from facerec import publish, schema
from facerec.alignment.sources import Listing
from facerec.photographs import as_table


class FakeAligner:
    """Files of the same name hold the same bytes; one name in ten holds no face, the others one each."""

    image_bytes = 20

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, photographs: pa.Table) -> pa.Table:
        """schema.PHOTOGRAPHS rows to schema.ALIGNED rows, one each, always the same."""
        return pa.Table.from_pylist([self._row(row) for row in photographs.to_pylist()], schema.ALIGNED)

    def _row(self, photograph: dict[str, Any]) -> dict[str, Any]:
        source = hashlib.sha256(photograph["source_uri"].rpartition("/")[2].encode()).hexdigest()
        row = {**photograph, "source_hash": source}
        if int(source[:4], 16) % 10 == 0:
            return {**row, "level": "image", "reason": "no_face", "detail": "250 x 250 pixels"}
        return {
            **row,
            "face_id": hashlib.md5(f"{source}{photograph['identity']}".encode()).hexdigest(),
            "image": {"bytes": image_of(source, self.image_bytes), "path": None},
            "box": [0.0, 0.0, 9.0, 9.0],
            "landmarks": [4.0] * 10,
            "confidence": 0.99,
            "blur": 100.0,
            "phash": int(source[:15], 16),
        }


def image_of(source_hash: str, size: int) -> bytes:
    """Bytes that do not compress, by which an image is known again."""
    return np.random.default_rng(int(source_hash[:16], 16)).bytes(size)


def listing(people: int, each: int) -> Listing:
    """``each`` photographs of ``people``, of distinct bytes."""
    names = [f"person-{p:06d}" for p in range(people) for _ in range(each)]
    uris = [f"/memory/person-{p:06d}/{p}-{n:04d}.jpg" for p in range(people) for n in range(each)]
    return Listing(as_table(uris, names, ["1"] * len(uris)), 0)


def write_parts(folder: Path, photographs: pa.Table, size: int, aligner: FakeAligner) -> None:
    """Parts of ``size`` photographs as a run of alignment leaves them."""
    with publish.exclusive(str(folder), "--out") as fence:
        for at in range(0, photographs.num_rows, size):
            part = photographs.slice(at, size)
            publish.write_part(fence, part, functools.partial(aligner, part))
