"""The loader gives the faces that the schedule names, the same ones to any share, and reads no more than it may."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from facerec import s3, storage
from facerec.errors import DatasetError, ProcessError, StorageError
from facerec.models.images import decode_jpeg
from facerec.publish import Dataset
from facerec.schema import FACE_SIDE
from facerec.training import decoder, loader
from facerec.training.augment import AugmentConfig, _crop, augment
from facerec.training.batches import BatchShape
from facerec.training.decoder import Recipe
from facerec.training.index import FaceIndex
from facerec.training.loader import HELD, FaceStore, Loader
from facerec.training.processes import SLOTS
from facerec.training.schedule import Schedule
from tests.support.faces import write_faces
from tests.support.processes import adopt_orphans, await_that, descendants, reap, runs


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_faces(tmp_path_factory.mktemp("faces"), 10, 5, side=64)


PROCESSES = pytest.mark.parametrize("processes", [0, 2])


def loader_of(faces: Dataset, processes: int = 0, **changes: Any) -> Loader:
    index = FaceIndex.read(faces)
    schedule = Schedule(index, index.identities, BatchShape(p=8, k=4, micro_batch=8), 0)
    settings: dict[str, Any] = {"side": 32, "augment": AugmentConfig(), "seed": 0} | changes
    return Loader(store=FaceStore(faces, index), schedule=schedule, processes=processes, **settings)


def loader_processes(parent: int) -> list[int]:
    """The loader processes of a process."""
    found = []
    for child in descendants(parent):
        with contextlib.suppress(OSError):
            if decoder.__name__.encode() in Path(f"/proc/{child}/cmdline").read_bytes() and runs(child):
                found.append(child)
    return found


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


@PROCESSES
def test_steps_made_ahead_are_the_steps_asked_for_and_leaving_early_leaves_nothing(
    faces: Dataset, processes: int
) -> None:
    before = threading.active_count()
    shares = loader_of(faces, processes).ahead(range(5, 100), range(2))
    for step in (5, 6):
        share = next(shares)
        assert share.step == step
        assert torch.equal(share.images, loader_of(faces).load(step, range(2)).images)
    assert len(loader_processes(os.getpid())) == processes
    shares.close()
    assert not loader_processes(os.getpid())
    assert threading.active_count() == before


EVERYTHING = AugmentConfig(rotation=10, colour=0.1, grey=0.3, blur=0.5, low_resolution=0.5, occlusion=0.5)


@PROCESSES
@pytest.mark.parametrize("side, decoded", [(32, 64), (28, 32)])
def test_a_loader_that_only_decodes_gives_the_faces_and_the_numbers_that_augment_them(
    faces: Dataset, processes: int, side: int, decoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the side at which the other loader augments them: 28 px take 32 where a tenth may be cut away, and 32 take 36."""
    monkeypatch.setattr(loader, "FACE_SIDE", 64)
    augmented = loader_of(faces, side=side, augment=EVERYTHING).load(3, range(1, 4))
    only_decoded = loader_of(faces, processes, side=side, augment=EVERYTHING, decode_only=True)
    share = next(only_decoded.ahead(range(3, 4), range(1, 4)))
    assert share.images.shape == (24, decoded, decoded, 3)
    assert share.drawn is not None
    assert augmented.drawn is None
    expected = [
        augment(face, side, EVERYTHING, numbers)
        for face, numbers in zip(share.images.numpy(), share.drawn.numpy(), strict=True)
    ]
    assert np.array_equal(augmented.images.numpy(), np.stack(expected))


@pytest.mark.parametrize("augment", [None, EVERYTHING], ids=["decoded", "augmented"])
@pytest.mark.parametrize("groups", [range(4), range(1, 2)], ids=str)
def test_processes_make_the_pixels_that_the_thread_makes_at_every_step(
    faces: Dataset, augment: AugmentConfig | None, groups: range
) -> None:
    by_thread, by_processes = (
        list(loader_of(faces, processes, augment=augment).ahead(range(3, 12), groups)) for processes in (0, 3)
    )
    assert [share.step for share in by_processes] == list(range(3, 12))
    for ours, theirs in zip(by_thread, by_processes, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert np.array_equal(ours.faces, theirs.faces)
        assert np.array_equal(ours.labels, theirs.labels)


@PROCESSES
def test_as_many_shares_are_in_memory_as_the_forecast_counts(
    faces: Dataset, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, alive, most, filled = 0, set[int](), 0, Loader._filled

    def counted(loader: Loader, *arguments: Any) -> torch.Tensor:
        nonlocal made, most
        images = filled(loader, *arguments)
        alive.add(made)
        weakref.finalize(images, alive.discard, made)
        made, most = made + 1, max(most, len(alive))
        return images

    monkeypatch.setattr(Loader, "_filled", counted)
    shares = loader_of(faces, processes).ahead(range(8), range(2))
    for taken in range(1, 9):
        share = next(shares)
        await_that(lambda: made >= min(8, taken + HELD - 1), lambda: f"{made} made")  # noqa: B023 - called at once
        assert share.step == taken - 1
        del share
    assert most == HELD


def test_jobs_are_read_no_further_ahead_than_there_are_places(
    faces: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, jobs = 0, Loader._jobs

    def counted(loader: Loader, *arguments: Any) -> Iterator[decoder.Job]:
        nonlocal read
        for job in jobs(loader, *arguments):
            read += 1
            yield job

    monkeypatch.setattr(Loader, "_jobs", counted)
    shares = loader_of(faces, 2).ahead(range(100), range(2))
    next(shares)
    most = 2 * HELD + SLOTS * 2 + 1  # of shares, in flight, and one that waits for a place
    await_that(lambda: read >= most - 2, lambda: f"{read} read")
    time.sleep(0.3)
    assert read <= most
    shares.close()


@pytest.mark.parametrize("crop", [0.0, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("side", [32, 64, 112, 160, 224])
def test_a_reduced_face_has_the_pixels_that_the_smallest_crop_needs(side: int, crop: float) -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((FACE_SIDE, FACE_SIDE, 3), np.uint8))[1].tobytes()
    face = decode_jpeg(jpeg, Recipe(side, AugmentConfig(crop=crop)).least)
    smallest = _crop(face, 1 - crop, 1.0, 1.0)
    assert min(smallest.shape[:2]) >= side or len(face) == FACE_SIDE
    assert len(face) < 2 * math.ceil(side / (1 - crop)), "a larger reduction was possible"


def test_a_face_that_cannot_be_decoded_is_the_same_line_from_a_process(
    faces: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = FaceStore.read

    def damaged(store: FaceStore, ordinals: Sequence[int]) -> list[bytes]:
        return [b"no image" if number == 9 else jpeg for number, jpeg in enumerate(read(store, ordinals))]

    monkeypatch.setattr(FaceStore, "read", damaged)
    said = []
    for processes in (0, 2):
        with pytest.raises(DatasetError, match=r"8 bytes cannot be decoded.*jobs/align\.py") as raised:
            next(loader_of(faces, processes).ahead(range(9), range(2)))
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert not loader_processes(os.getpid())


@pytest.mark.parametrize("stopped", [False, True], ids=["at work", "waiting"])
def test_a_killed_loader_process_is_one_line_and_no_hang(faces: Dataset, stopped: bool) -> None:
    shares = loader_of(faces, 2).ahead(range(10_000), range(2))
    next(shares)
    victim = loader_processes(os.getpid())[0]
    if stopped:  # all queues are full, so the process is idle when it is killed
        time.sleep(0.5)
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ProcessError, match=rf"process {victim} has ended \(signal 9.*--loader_processes"):
        for _ in shares:
            pass
    assert time.monotonic() - began < 10
    assert not loader_processes(os.getpid())


def test_a_loader_process_that_cannot_be_started_is_one_line(
    faces: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    with pytest.raises(ProcessError, match=r"cannot be started: Resource.*--loader_processes"):
        next(loader_of(faces, 2).ahead(range(2), range(2)))


def test_loader_processes_ignore_ctrl_c_and_hold_no_token_torch_or_ray(faces: Dataset) -> None:
    assert os.environ["RAY_AUTH_TOKEN"]
    shares = loader_of(faces, 2).ahead(range(10_000), range(2))
    next(shares)
    for process in loader_processes(os.getpid()):
        assert b"RAY_AUTH_TOKEN" not in Path(f"/proc/{process}/environ").read_bytes()
        assert not {"torch", "ray"} & set(Path(f"/proc/{process}/maps").read_text().split("/"))
        os.kill(process, signal.SIGINT)
    for _ in range(20):
        next(shares)
    shares.close()


def test_loader_processes_end_by_themselves_when_the_training_process_is_killed(
    faces: Dataset, tmp_path: Path
) -> None:
    """The script has no ``if __name__`` guard: a loader process does not import it again."""
    adopt_orphans()
    code = f"""
from facerec.publish import open_dataset
from tests.training.test_loader import loader_of
for share in loader_of(open_dataset({faces.folder!r}, ""), 2).ahead(range(10**6), range(4)):
    print(share.step, flush=True)
"""
    script = tmp_path / "training.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    training = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert training.stdout
    assert training.stdout.readline() == "0\n"
    processes = loader_processes(training.pid)
    assert len(processes) == 2
    training.kill()
    training.communicate()

    def ended() -> bool:
        for process in processes:
            reap(process)
        return not any(map(runs, processes))

    await_that(ended, lambda: f"{processes} outlived the training process", limit_s=5)


@PROCESSES
def test_a_missing_shard_is_one_line_in_the_thread_that_trains(tmp_path: Path, processes: int) -> None:
    faces = write_faces(tmp_path, 10, 5, side=64)
    Path(faces.uris("faces")[0]).unlink()
    with pytest.raises(DatasetError, match=r"faces-00000\.parquet, row group .*jobs/align\.py"):
        next(loader_of(faces, processes).ahead(range(2), range(4)))


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
