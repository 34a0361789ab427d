"""MTCNN on a GPU finds the faces that it finds on the CPU.

These tests need one GPU, and say so where there is none.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from facerec import decoding
from facerec.alignment import nets
from facerec.alignment.detector import Detector
from facerec.synthetic import SyntheticConfig, write_collection
from tests.alignment.test_mtcnn import canvases

Image = NDArray[np.uint8]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    folder = tmp_path_factory.mktemp("drawn")
    write_collection(folder, SyntheticConfig(identities=8, photographs=4))
    return [decoding.decode(path.read_bytes()) for path in sorted(folder.rglob("*.jpg"))]


def test_drawn_faces_are_those_of_the_cpu(drawn: list[Image]) -> None:
    here, there = (
        Detector(20, backend="torch", device=device).detect_tight_many(drawn) for device in ("cpu", "cuda")
    )
    assert [len(faces) for faces in there] == [len(faces) for faces in here]
    apart = np.concatenate(
        [np.abs(theirs.boxes - ours.boxes).max(axis=1) for ours, theirs in zip(here, there, strict=True)]
    )
    assert np.mean(apart < 0.1) >= 0.9
    assert apart.max() < 3, "a box that rounding moves by a pixel gives another crop to the next net"


def test_photographed_faces_are_those_of_the_cpu(photographs_of_people: Path) -> None:
    paths = sorted((photographs_of_people / "lfw").rglob("*.jpg"))[::100]
    images = [decoding.decode(path.read_bytes()) for path in paths]
    here, there = (
        Detector(20, backend="torch", device=device).detect_tight_many(images) for device in ("cpu", "cuda")
    )
    equal = sum(len(ours) == len(theirs) for ours, theirs in zip(here, there, strict=True))
    assert equal >= 0.99 * len(images)


def test_the_nets_are_those_of_the_cpu_to_float32s_rounding_and_not_tf32s() -> None:
    pixels, seams = canvases(4)
    here, there = (nets.TorchNets(device, nets.ON_GPU) for device in ("cpu", "cuda"))
    for ours, theirs in zip(here.propose(pixels, seams[0]), there.propose(pixels, seams[0]), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_the_host_waits_once_a_call() -> None:
    pixels, seams = canvases(16)
    loaded = nets.TorchNets("cuda")
    loaded.propose(pixels, seams[0])
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            loaded.propose(pixels, seams[0])
        finally:
            torch.cuda.set_sync_debug_mode(before)
    assert len([line for line in said if "called a synchronizing" in str(line.message)]) <= 1
