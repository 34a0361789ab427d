"""Parts: one that a node had finished before it died is not made again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from facerec import publish, schema, storage
from facerec.errors import DatasetError, MismatchError
from tests.support.aligner import FakeAligner, listing


def test_a_finished_part_is_not_made_again_and_tells_the_same(tmp_path: Path) -> None:
    photographs = listing(3, 4).photographs
    with publish.exclusive(str(tmp_path), "--out") as fence:
        told = publish.write_part(fence, photographs, lambda: FakeAligner()(photographs))
        again = publish.write_part(fence, photographs, lambda: pytest.fail("made again"))
    assert again.equals(told)
    (counts,) = told.to_pylist()
    assert counts["photographs"] == counts["faces"] + counts["rejects"] == 12


def test_faces_of_one_photograph_may_lie_in_two_parts(tmp_path: Path) -> None:
    rows = FakeAligner()(listing(1, 2).photographs)
    for name in schema.PHOTOGRAPHS.names:  # two faces of one photograph
        column = pa.array([rows[name][0].as_py()] * 2, pa.string())
        rows = rows.set_column(rows.column_names.index(name), name, column)
    names = rows.select(["source_uri", "identity", "face_id"])
    with publish.exclusive(str(tmp_path), "--out") as fence:
        for face in range(2):
            publish.write_part(fence, names.slice(face, 1), partial(rows.slice, face, 1))
    held = pa.concat_tables(storage.read_table(uri) for uri in publish.parts(str(tmp_path)))
    assert sorted(held["face_id"].to_pylist()) == sorted(rows["face_id"].to_pylist())


def test_faces_that_are_left_out_of_a_photograph_are_no_rejected_photographs(tmp_path: Path) -> None:
    photographs = listing(3, 4).photographs
    rows = FakeAligner()(photographs)
    bystander = rows.filter(pc.is_null(rows["level"])).slice(0, 1).to_pylist()
    bystander[0] |= {"level": "face", "reason": "not_subject", "face_id": None}
    both = pa.concat_tables([rows, pa.Table.from_pylist(bystander, schema.ALIGNED)])
    with publish.exclusive(str(tmp_path), "--out") as fence:
        (counts,) = publish.write_part(fence, photographs, lambda: both).to_pylist()
    assert counts["photographs"] == counts["faces"] + counts["rejects"] == 12


def test_a_claim_that_was_killed_half_written_can_be_made_again(tmp_path: Path) -> None:
    (tmp_path / "claim.json.0123abcd.tmp").write_text("{")
    with publish.exclusive(str(tmp_path), "--out") as fence:
        publish.claim(fence, {"seed": 1}, "--out")
    assert publish.claimed(str(tmp_path), {"seed": 1}, "--out")


def test_a_folder_of_another_schema_version_is_one_line(tmp_path: Path) -> None:
    """Parts of version 1 have no source_version, so none of them may be taken for finished work."""
    (tmp_path / "claim.json").write_text('{"seed": 1}')
    with pytest.raises(MismatchError, match=r"schema version 1.* 2; choose another --out"):
        publish.claimed(str(tmp_path), {"seed": 1}, "--out")
    (tmp_path / "manifest.json").write_text('{"schema_version": 1}')
    with pytest.raises(DatasetError, match=r"schema version 1.* 2; run jobs/align.py into a new folder"):
        publish.open_dataset(str(tmp_path), "jobs/align.py")
