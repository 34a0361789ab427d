"""facenet-pytorch's MTCNN cascade for many photographs of any size at once: its boxes at several times its speed.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks", 2016. What is
kept per face carries its photograph's number, so all stages run over all photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facerec.alignment import pyramid
from facerec.alignment.boxes import F32, I64, moved, squared, suppress, windows
from facerec.alignment.nets import Nets
from facerec.alignment.pyramid import CANVAS, CONVOLVED, Placed
from facerec.models import device

THRESHOLDS = (np.float32(0.6), np.float32(0.7), np.float32(0.7))
"""Face probabilities that P-Net, R-Net and O-Net ask for."""


@dataclass(frozen=True)
class Faces:
    """Faces of many photographs, in the order of the photographs."""

    photos: I64
    """[n]: number of the photograph."""
    boxes: F32
    """[n, 4]: x0, y0, x1, y1 in its pixels."""
    landmarks: F32
    """[n, 5, 2]."""
    probabilities: F32
    """[n]."""


def find_faces(photos: list[NDArray[np.uint8]], min_faces: list[float], nets: Nets) -> Faces:
    """All faces in RGB uint8 photographs [h, w, 3], each looked for from its own smallest side in pixels on."""
    photos = [np.ascontiguousarray(photo) for photo in photos]
    owner, boxes = _propose(photos, min_faces, nets)
    owner, boxes = _refine(photos, owner, boxes, nets)
    return _finish(photos, owner, boxes, nets)


def _propose(photos: list[NDArray[np.uint8]], min_faces: list[float], nets: Nets) -> tuple[I64, F32]:
    """P-Net's candidates after both suppressions: photograph [n] and square box [n, 4]."""
    pieces = [
        tile
        for number, (photo, smallest) in enumerate(zip(photos, min_faces, strict=True))
        for tile in pyramid.tiles(number, photo.shape[0], photo.shape[1], smallest)
    ]
    found = [np.empty((0, 9), np.float32)]
    places = [np.empty((0, 4), np.int64)]
    for placed, offsets, faces in _on_canvases(photos, pyramid.pack(pieces), nets):
        place, values = _candidates(placed, offsets, faces)
        places.append(place)
        found.append(values)
    place, values = np.concatenate(places), np.concatenate(found)
    order = np.lexsort(place.T[::-1])  # the reference's order settles ties: scale, row, column
    place, values = place[order], values[order]
    levels = 64 * place[:, 0] + place[:, 1]
    kept = suppress(values[:, :4], values[:, 4], levels, 0.5)
    place, values = place[kept], values[kept]
    kept = suppress(values[:, :4], values[:, 4], place[:, 0], 0.7)
    values = values[kept]
    return place[kept, 0], squared(moved(values[:, :4], values[:, 5:], inclusive=False))


def _on_canvases(
    photos: list[NDArray[np.uint8]], packed: list[list[Placed]], nets: Nets
) -> Iterator[tuple[list[Placed], F32, F32]]:
    """The tiles of each canvas, and P-Net's offsets [4, cells, cells] and face probabilities [cells, cells] for it."""
    canvases = np.zeros((nets.sizes.canvases[0], CANVAS, CANVAS, 3), np.float32)
    for chosen, size in device.calls(len(packed), nets.sizes.canvases):
        seams = []
        for number, placed in enumerate(packed[chosen]):
            pyramid.fill(canvases[number], placed, photos)
            seams.append(number * CONVOLVED**2 + pyramid.seams(placed))
        offsets, faces = nets.propose(canvases[:size], np.concatenate(seams))
        yield from zip(packed[chosen], offsets, faces, strict=False)  # without what padding gave


def _candidates(placed: list[Placed], offsets: F32, faces: F32) -> tuple[I64, F32]:
    """Cells of a canvas above the threshold.

    int64 [n, 4]: photograph, level, row and column in the level; float32 [n, 9]: box, probability, offsets.
    """
    owner = pyramid.owners(placed)
    row, column = np.nonzero((faces >= THRESHOLDS[0]) & (owner >= 0))
    tile = owner[row, column]
    facts = np.array([(t.photo, t.level, t.top // 2 - y // 2, t.left // 2 - x // 2) for t, y, x in placed])
    scale = np.array([t.scale for t, _, _ in placed], np.float32)[tile, None]
    place = facts[tile]
    place[:, 2] += row
    place[:, 3] += column
    corner = pyramid.STRIDE * place[:, :1:-1].astype(np.float32)
    boxes = np.hstack([np.floor((corner + 1) / scale), np.floor((corner + pyramid.WINDOW) / scale)])
    values = np.hstack([boxes, faces[row, column, None], offsets[:, row, column].T])
    return place, values.astype(np.float32)


def _refine(photos: list[NDArray[np.uint8]], owner: I64, boxes: F32, nets: Nets) -> tuple[I64, F32]:
    owner, boxes, (offsets, faces) = _examine(photos, owner, boxes, 24, nets.refine, (4, 0), nets.sizes.crops)
    kept = np.flatnonzero(faces > THRESHOLDS[1])
    kept = kept[suppress(boxes[kept], faces[kept], owner[kept], 0.7)]
    return owner[kept], squared(moved(boxes[kept], offsets[kept], inclusive=True))


def _finish(photos: list[NDArray[np.uint8]], owner: I64, boxes: F32, nets: Nets) -> Faces:
    owner, boxes, (offsets, points, faces) = _examine(
        photos, owner, boxes, 48, nets.finish, (4, 10, 0), nets.sizes.crops
    )
    kept = np.flatnonzero(faces > THRESHOLDS[2])
    owner, boxes, offsets, points, faces = owner[kept], boxes[kept], offsets[kept], points[kept], faces[kept]
    sides = boxes[:, 2:] - boxes[:, :2] + np.float32(1)
    landmarks = (
        sides[:, None] * points.reshape(-1, 2, 5).transpose(0, 2, 1) + boxes[:, None, :2] - np.float32(1)
    )
    boxes = moved(boxes, offsets, inclusive=True)
    kept = suppress(boxes, faces, owner, 0.7, "smaller")
    return Faces(owner[kept], boxes[kept], landmarks[kept], faces[kept])


def _examine(
    photos: list[NDArray[np.uint8]],
    owner: I64,
    boxes: F32,
    side: int,
    net: Callable[[F32], tuple[F32, ...]],
    widths: tuple[int, ...],
    batches: tuple[int, ...],
) -> tuple[I64, F32, list[F32]]:
    """The boxes that lie over pixels, and the outputs of ``net`` for their crops.

    ``widths`` are those of the outputs (0: no axis); ``batches`` are the numbers of crops that it takes at once.
    """
    sizes = np.array([photo.shape[:2] for photo in photos], np.int64).reshape(-1, 2)[owner]
    area = windows(boxes, sizes[:, 0], sizes[:, 1])
    some = np.flatnonzero((area[:, 2] > area[:, 0]) & (area[:, 3] > area[:, 1]))
    owner, boxes, area = owner[some], boxes[some], area[some]
    said: list[list[F32]] = [[np.empty((0, width) if width else 0, np.float32)] for width in widths]
    for chosen, size in device.calls(len(owner), batches):
        crops = np.zeros((size, side, side, 3), np.float32)
        for photo in np.unique(owner[chosen]):
            mine = np.flatnonzero(owner[chosen] == photo)
            pyramid.crops(photos[photo], area[chosen][mine], crops[mine[0] : mine[-1] + 1])
        for outputs, values in zip(said, net(crops), strict=True):
            outputs.append(values[: chosen.stop - chosen.start])
    return owner, boxes, [np.concatenate(outputs) for outputs in said]
