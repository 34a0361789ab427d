"""The batched cascade against the one it came from: facenet-pytorch's MTCNN, its nets and torch's average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from facerec import decoding
from facerec.alignment import nets, pyramid
from facerec.alignment.detector import Detections, Detector
from facerec.alignment.mtcnn import find_faces
from facerec.errors import ConfigError
from facerec.synthetic import SyntheticConfig, write_collection
from tests.support.dispatch import Dispatched
from tests.support.extras import needs_openvino

Image = NDArray[np.uint8]
BACKENDS = ["torch", "openvino"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> nets.Backend:
    if request.param == "openvino":
        needs_openvino()
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    folder = tmp_path_factory.mktemp("drawn")
    write_collection(folder, SyntheticConfig(identities=4, photographs=4))
    return [decoding.decode(path.read_bytes()) for path in sorted(folder.rglob("*.jpg"))]


def noise(height: int, width: int) -> Image:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def agreeing(images: list[Image], found: list[Detections]) -> tuple[int, int, int]:
    """Photographs with as many faces as the reference has, its faces that are ours too, and all of its faces."""
    reference = MTCNN(min_face_size=20, keep_all=True)
    counts = same = total = 0
    for image, ours in zip(images, found, strict=True):
        boxes, _, landmarks = reference.detect(image, landmarks=True)
        counts += len(ours) == (0 if boxes is None else len(boxes))
        total += 0 if boxes is None else len(boxes)
        for box, points in zip([] if boxes is None else boxes, landmarks if len(ours) else [], strict=False):
            side = (box[2:] - box[:2]).max()
            near = np.abs(ours.boxes - box).max(axis=1).argmin()
            same += (
                np.abs(ours.boxes[near] - box).max() < 0.012 * side
                and np.abs(ours.landmarks[near] - points).max() < 0.01 * side
            )
    return counts, same, total


def test_drawn_faces_are_found_as_the_reference_finds_them(drawn: list[Image], backend: nets.Backend) -> None:
    counts, same, total = agreeing(drawn, Detector(20, backend=backend).detect_many(drawn))
    assert counts == len(drawn)
    assert same == total > 0


def test_photographs_of_any_size_give_the_references_faces(
    photographs_of_people: Path, backend: nets.Backend
) -> None:
    paths = [
        *sorted((photographs_of_people / "lfw").rglob("*.jpg"))[::400],
        *sorted((photographs_of_people / "pins").rglob("*.jpg"))[::200],
        *sorted((photographs_of_people / "odd" / "compreface_samples").glob("*_[3458].jpg")),
    ]
    images = [decoding.decode(path.read_bytes()) for path in paths]
    counts, same, total = agreeing(images, Detector(20, backend=backend).detect_many(images))
    assert counts == len(images)
    assert same >= 0.98 * total


def test_a_batch_gives_what_its_photographs_give_alone(drawn: list[Image], backend: nets.Backend) -> None:
    detector = Detector(20, backend=backend)
    mixed = [drawn[0], noise(40, 300), np.ascontiguousarray(drawn[1][20:-33, 7:-40]), noise(12, 12), drawn[2]]
    for together, image in zip(detector.detect_many(mixed), mixed, strict=True):
        alone = detector.detect(image)
        np.testing.assert_allclose(together.boxes, alone.boxes, atol=1e-2)
        np.testing.assert_allclose(together.landmarks, alone.landmarks, atol=1e-2)


@pytest.mark.parametrize("shape", [(12, 12), (11, 900), (1, 1), (900, 13), (19, 19), (20, 20)])
def test_what_holds_no_face_is_no_face(shape: tuple[int, int], backend: nets.Backend) -> None:
    assert len(Detector(20, backend=backend).detect(noise(*shape))) == 0


def test_no_photographs_give_no_detections() -> None:
    assert Detector(20).detect_many([]) == []


@pytest.mark.parametrize("size", [(13, 20), (171, 231), (341, 462), (684, 924)])
def test_the_average_is_torchs_bit_by_bit(size: tuple[int, int]) -> None:
    image = noise(341, 462)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    wanted = ((interpolate(pixels, size=size, mode="area") - 127.5) * 0.0078125)[0].permute(1, 2, 0).numpy()
    whole = np.empty((*size, 3), np.float32)
    pyramid.fill(whole, [pyramid.Placed(pyramid.Tile(0, 0, 1.0, size, 0, 0, *size), 0, 0)], [image])
    np.testing.assert_array_equal(whole, wanted)


@pytest.mark.parametrize("shape", [(701, 640), (97, 132), (21, 700)])
def test_tiles_on_canvases_give_the_cells_of_whole_levels(
    shape: tuple[int, int], backend: nets.Backend
) -> None:
    image, loaded, reference = noise(*shape), nets.load(backend), MTCNN().pnet
    scales = pyramid.scales(*shape, 20)
    sizes = [(int(shape[0] * scale + 1), int(shape[1] * scale + 1)) for scale in scales]
    levels = [
        np.full((pyramid.cells(height), pyramid.cells(width)), np.nan, np.float32) for height, width in sizes
    ]
    canvas = np.full((1, pyramid.CANVAS, pyramid.CANVAS, 3), 1.0, np.float32)
    for placed in pyramid.pack(pyramid.tiles(0, *shape, 20)):
        pyramid.fill(canvas[0], placed, [image])
        faces = loaded.propose(canvas, pyramid.seams(placed))[1][0]
        for tile, y, x in placed:
            tall, wide = pyramid.cells(tile.height), pyramid.cells(tile.width)
            into = levels[tile.level][tile.top // 2 :, tile.left // 2 :][:tall, :wide]
            into[:] = faces[y // 2 : y // 2 + tall, x // 2 : x // 2 + wide]
    for level, size in zip(levels, sizes, strict=True):
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            wanted = reference((interpolate(pixels, size=size, mode="area") - 127.5) * 0.0078125)[1][0, 1]
        np.testing.assert_allclose(level, wanted.numpy(), atol=1e-5)


def test_the_smallest_face_is_the_larger_of_pixels_and_fraction(drawn: list[Image]) -> None:
    assert len(Detector(20, 0.05).detect(drawn[0])) == len(Detector(20).detect(drawn[0])) == 1
    assert len(Detector(20, 0.95).detect(drawn[0])) == 0


def canvases(k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Noise in [-1, 1], and seams that differ from canvas to canvas."""
    random = np.random.default_rng(0)
    pixels = random.uniform(-1, 1, (k, pyramid.CANVAS, pyramid.CANVAS, 3)).astype(np.float32)
    return pixels, random.integers(0, pyramid.CONVOLVED**2, (k, 500))


@pytest.mark.parametrize("k", [4, 16])
def test_canvases_together_give_what_each_gives_alone_bit_by_bit(k: int, backend: nets.Backend) -> None:
    loaded, (pixels, seams) = nets.load(backend), canvases(k)
    numbered = seams + pyramid.CONVOLVED**2 * np.arange(k)[:, None]
    offsets, faces = loaded.propose(pixels, numbered.ravel())
    assert offsets.shape == (k, 4, pyramid.CELLS, pyramid.CELLS)
    for number in range(k):
        alone = loaded.propose(pixels[number : number + 1], seams[number])
        np.testing.assert_array_equal(offsets[number], alone[0][0])
        np.testing.assert_array_equal(faces[number], alone[1][0])


def assert_same_faces_in_the_calls_of_a_gpu(images: list[Image]) -> None:
    one, other = (
        find_faces(images, [20.0] * len(images), nets.TorchNets(sizes=sizes))
        for sizes in (nets.ON_CPU, nets.ON_GPU)
    )
    assert len(one.boxes) >= len(images) // 2
    for name in ("photos", "boxes", "landmarks", "probabilities"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_drawn_faces_are_bit_equal_in_the_calls_of_a_gpu(drawn: list[Image]) -> None:
    assert_same_faces_in_the_calls_of_a_gpu(drawn)


def test_photographed_faces_are_bit_equal_in_the_calls_of_a_gpu(photographs_of_people: Path) -> None:
    paths = [
        *sorted((photographs_of_people / "lfw").rglob("*.jpg"))[::400],
        *sorted((photographs_of_people / "odd" / "compreface_samples").glob("*_[3458].jpg")),
    ]
    assert_same_faces_in_the_calls_of_a_gpu([decoding.decode(path.read_bytes()) for path in paths])


def test_a_gpu_sees_few_shapes_and_gives_its_outputs_in_one_copy_and_without_a_wait(
    drawn: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = nets.TorchNets(sizes=nets.ON_GPU)
    seen: list[tuple[int, ...]] = []
    copies: list[torch.Size] = []
    sent, on_host = nets.TorchNets._input, nets._on_host

    def input_seen(self: nets.TorchNets, images: NDArray[np.float32]) -> torch.Tensor:
        seen.append(images.shape[:2])
        return sent(self, images)

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        copies.append(tensor.shape)
        return on_host(tensor)

    monkeypatch.setattr(nets.TorchNets, "_input", input_seen)
    monkeypatch.setattr(nets, "_on_host", copied)
    with Dispatched() as counted:
        find_faces(drawn, [20.0] * len(drawn), loaded)
    assert set(seen) <= {(16, 320), (4, 320), (256, 24), (64, 24), (256, 48), (64, 48)}
    assert {side for _, side in seen} == {320, 24, 48}
    assert len(copies) == len(seen)
    assert not counted.waits


def test_convolutions_are_in_true_float32_and_the_setting_is_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside: list[bool] = []
    convolve = torch.nn.Conv2d.forward

    def forward(layer: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        inside.append(torch.backends.cudnn.allow_tf32)
        return convolve(layer, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    before, loaded = torch.backends.cudnn.allow_tf32, nets.TorchNets()
    pixels, seams = canvases(1)
    loaded.propose(pixels, seams[0])
    loaded.refine(np.zeros((16, 24, 24, 3), np.float32))
    loaded.finish(np.zeros((16, 48, 48, 3), np.float32))
    assert before is torch.backends.cudnn.allow_tf32 is True
    assert inside == [False] * (5 + 3 + 4)


def test_openvino_on_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"not on cuda; choose --detection\.backend torch or auto"):
        nets.load("openvino", "cuda")
