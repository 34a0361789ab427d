"""The loader gives the faces that the schedule names, the same ones to any share, and reads no more than it may."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facerec import s3, storage
from facerec.errors import DatasetError, StorageError
from facerec.publish import Dataset
from facerec.training import loader
from facerec.training.augment import AugmentConfig
from facerec.training.batches import BatchShape
from facerec.training.index import FaceIndex
from facerec.training.loader import HELD, FaceStore, Loader, Share
from facerec.training.schedule import Schedule
from tests.support.faces import write_faces
from tests.support.processes import await_that


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_faces(tmp_path_factory.mktemp("faces"), 10, 5, side=64)


def loader_of(faces: Dataset) -> Loader:
    index = FaceIndex.read(faces)
    schedule = Schedule(index, index.identities, BatchShape(p=8, k=4, micro_batch=8), 0)
    return Loader(store=FaceStore(faces, index), schedule=schedule, side=32, augment=AugmentConfig(), seed=0)


def test_every_ordinal_gives_the_bytes_of_its_row_with_a_tiny_cache_too(faces: Dataset) -> None:
    stored = [image["bytes"] for image in faces.read("faces", ["image"])["image"].to_pylist()]
    order = np.random.default_rng(0).permutation(50)
    for cache_bytes in (1, 2**30):
        store = FaceStore(faces, FaceIndex.read(faces), cache_bytes)
        assert store.read(order) == [stored[i] for i in order]
    store = FaceStore(faces, FaceIndex.read(faces), 1)
    store.read(order)
    assert len(store._groups) == 1


def test_any_share_of_a_step_gives_the_same_pixels(faces: Dataset) -> None:
    whole = loader_of(faces).load(3, range(4))
    parts = [loader_of(faces).load(3, groups) for groups in (range(1), range(1, 3), range(3, 4))]
    assert whole.images.shape == (32, 32, 32, 3)
    assert whole.images.dtype == torch.uint8
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert np.array_equal(parts[1].faces, whole.faces)


def test_steps_made_ahead_are_the_steps_asked_for_and_leaving_early_stops_the_thread(faces: Dataset) -> None:
    loader = loader_of(faces)
    shares = loader.ahead(range(5, 100), range(2))
    for step in (5, 6):
        share = next(shares)
        assert share.step == step
        assert torch.equal(share.images, loader_of(faces).load(step, range(2)).images)
    shares.close()


def test_as_many_shares_are_in_memory_as_the_forecast_counts(
    faces: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, alive, most, load = 0, set[int](), 0, Loader.load

    def counted(loader: Loader, step: int, *arguments: Any) -> Share:
        nonlocal made, most
        share = load(loader, step, *arguments)
        alive.add(step)
        weakref.finalize(share.images, alive.discard, step)
        made, most = made + 1, max(most, len(alive))
        return share

    monkeypatch.setattr(Loader, "load", counted)
    shares = loader_of(faces).ahead(range(8), range(2))
    for taken in range(1, 9):
        share = next(shares)
        await_that(lambda: made >= min(8, taken + HELD - 1), lambda: f"{made} made")  # noqa: B023 - called at once
        assert share.step == taken - 1
        del share
    assert most == HELD


def test_a_missing_shard_is_one_line_in_the_thread_that_trains(tmp_path: Path) -> None:
    faces = write_faces(tmp_path, 10, 5, side=64)
    Path(faces.uris("faces")[0]).unlink()
    with pytest.raises(DatasetError, match=r"faces-00000\.parquet, row group .*jobs/align\.py"):
        next(loader_of(faces).ahead(range(2), range(4)))


def test_s3_that_refuses_is_no_damaged_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(uri: str) -> None:
        raise OSError(f"When reading {uri}: AWS Error ACCESS_DENIED during GetObject operation: no")

    faces, asked = write_faces(tmp_path, 10, 5, side=64), list[str]()
    loader = loader_of(faces)
    monkeypatch.setattr(storage, "open_input", refused)
    monkeypatch.setattr(s3, "begin", asked.append)
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        next(loader.ahead(range(2), range(4)))
    assert set(asked) == set(faces.uris("faces"))  # the object's address, to which no row group is added


def test_shards_beyond_those_held_open_are_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "OPEN_FILES", 1)
    faces = write_faces(tmp_path, 10, 5, side=64)
    (entry,) = [file for file in faces.manifest["files"] if file["kind"] == "faces"]
    shutil.copy(f"{faces.folder}/{entry['path']}", tmp_path / "copy.parquet")
    faces.manifest["files"].append(entry | {"path": "copy.parquet"})
    store, name = FaceStore(faces, FaceIndex.read(faces)), entry["path"].rsplit("/", 1)[-1]
    bytes_of = [store._load(file, 0)[0].as_py() for file in (name, "copy.parquet", name)]
    assert len(set(bytes_of)) == len(store._files) == 1
