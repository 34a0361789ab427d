"""The benchmark of detection and embedding on a GPU gives its figures, here by tiny sizes on the CPU."""

from __future__ import annotations

from tests.bench.gpu import _covered
from tests.bench.gpu_detection import detection, differences, embedding


def test_detection_counts_photographs_and_faces() -> None:
    found = detection("cpu", processes=2, seconds=0.5, photographs=4, side=128, backend="torch")
    assert found["photographs_per_s"] > 0
    assert 0.7 < found["faces_per_s"] / found["photographs_per_s"] <= 2


def test_embedding_counts_faces() -> None:
    found = embedding("cpu", processes=1, seconds=0.5, batch=4, side=64, backbone="mobilenetv3_small_050")
    assert found["faces_per_s"] > 0


def test_the_boxes_of_a_device_are_compared_with_those_of_the_cpu() -> None:
    assert differences("cpu", photographs=4, side=128) == {"equal_counts": 1, "max_pixels": 0, "near": 1}


def test_the_busy_share_counts_kernels_that_overlap_once() -> None:
    assert _covered([(0, 2), (1, 3), (5, 6), (5, 10)]) == 0.8
    assert _covered([]) == 0
