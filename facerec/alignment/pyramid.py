"""The scales of a photograph, averaged exactly, cut into tiles and packed on canvases of one fixed size.

One canvas takes tiles of many scales and many photographs, so P-Net sees one shape only. Two facts make it exact: a
P-Net cell sees 12 x 12 pixels and cells lie 2 apart, so tiles that overlap by 10 and begin at even places give all
cells of their level; and a tile lies at an even place of its canvas, so it is pooled in its own phase. Where a level
ends at an odd size, P-Net pools its last convolution column or row alone (``ceil_mode``); on a canvas its neighbour
would be pooled with it, so :func:`seams` names the places that must not count.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from facerec.alignment.boxes import F32, I64

CANVAS = 320
"""Canvas side in pixels, even. At 320 the scales of 32 photographs of 250 pixels fill 84 % of their canvases (56 % at
256); those of one large photograph alone, from faces of 5 % of its side on, 57 %."""
CONVOLVED = CANVAS - 2
"""Side of a canvas after P-Net's first convolution."""
WINDOW, STRIDE = 12, 2
"""Side of a cell's view and step between cells, in pixels of a level."""
CELLS = (CANVAS - WINDOW) // STRIDE + 1
FACTOR = 0.709
"""From one scale to the next: about half the area."""


class Tile(NamedTuple):
    """A rectangle of one level of one photograph."""

    photo: int
    level: int
    """0 is the largest level."""
    scale: float
    size: tuple[int, int]
    """Height and width of the whole level."""
    top: int
    left: int
    height: int
    width: int


class Placed(NamedTuple):
    """A tile and its top left corner on a canvas, both even."""

    tile: Tile
    y: int
    x: int


def scales(height: int, width: int, min_face: float) -> list[float]:
    """The reference's scales, largest first: from a face of ``min_face`` pixels to one as large as the short side."""
    scale, found = WINDOW / min_face, []
    short = min(height, width) * scale
    while short >= WINDOW:
        found.append(scale)
        scale, short = scale * FACTOR, short * FACTOR
    return found


def tiles(photo: int, height: int, width: int, min_face: float) -> list[Tile]:
    """All levels of a photograph, cut to the canvas's size."""
    found = []
    for level, scale in enumerate(scales(height, width, min_face)):
        size = int(height * scale + 1), int(width * scale + 1)
        columns = _cuts(size[1])
        for top, tall in _cuts(size[0]):
            found += [Tile(photo, level, scale, size, top, left, tall, wide) for left, wide in columns]
    return found


def cells(side: int) -> int:
    """Cells along a side of so many pixels."""
    return (side - 1) // 2 - 4


def _cuts(side: int) -> list[tuple[int, int]]:
    """Begin and length of the overlapping pieces of a level's side."""
    begins = range(0, STRIDE * cells(side), CANVAS - WINDOW + STRIDE)
    return [(begin, min(CANVAS, side - begin)) for begin in begins]


def pack(pieces: list[Tile]) -> list[list[Placed]]:
    """Tiles on canvases: on shelves by falling height, each on the first shelf with room, then shelves likewise."""
    ordered = sorted(pieces, key=lambda tile: (-tile.height, -tile.width))
    shelves, columns = _first_fit([tile.width for tile in ordered])
    talls: dict[int, int] = {}
    for tile, shelf in zip(ordered, shelves, strict=True):
        talls.setdefault(shelf, tile.height)
    canvases, rows = _first_fit(list(talls.values()))
    packed: list[list[Placed]] = [[] for _ in range(max(canvases, default=-1) + 1)]
    for tile, shelf, x in zip(ordered, shelves, columns, strict=True):
        packed[canvases[shelf]].append(Placed(tile, rows[shelf], x))
    return packed


def _first_fit(lengths: list[int]) -> tuple[list[int], list[int]]:
    """For each length the first bin of CANVAS pixels with room for it, and where it begins there, even."""
    ends: list[int] = []
    bins, begins = [], []
    for length in lengths:
        found = next((i for i, end in enumerate(ends) if end + length <= CANVAS), len(ends))
        if found == len(ends):
            ends.append(0)
        bins.append(found)
        begins.append(ends[found])
        ends[found] += length + length % 2
    return bins, begins


def fill(canvas: F32, placed: list[Placed], photos: list[NDArray[np.uint8]]) -> None:
    """Average each tile out of its photograph onto the canvas, float32 [CANVAS, CANVAS, 3] in [-1, 1]."""
    for tile, y, x in placed:
        photo = photos[tile.photo]
        window = (0, 0, photo.shape[0], photo.shape[1])
        part = canvas[y : y + tile.height, x : x + tile.width]
        _average(_rows(photo), window, tile.size, (tile.top, tile.left), part)


def crops(photo: NDArray[np.uint8], windows: I64, out: F32) -> None:
    """Average windows [n, 4] (top, left, bottom, right) of a photograph into ``out`` [n, side, side, 3]."""
    for window, crop in zip(windows.tolist(), out, strict=True):
        _average(_rows(photo), tuple(window), crop.shape[:2], (0, 0), crop)


def _rows(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return photo.reshape(len(photo), -1)


def seams(placed: list[Placed]) -> I64:
    """Places [k] of the first convolution's output, counted row by row, that no pooling may see."""
    places = np.arange(CONVOLVED * CONVOLVED).reshape(CONVOLVED, CONVOLVED)
    found = [np.empty(0, np.int64)]
    for tile, y, x in placed:
        bottom, right = y + tile.height - 2, x + tile.width - 2
        if tile.height % 2:
            found.append(places[bottom, x : right + 1])
        if tile.width % 2:
            found.append(places[y : bottom + 1, right])
    return np.concatenate(found)


def owners(placed: list[Placed]) -> I64:
    """int64 [CELLS, CELLS]: which of the placed tiles a cell of the canvas belongs to, -1 for none."""
    found = np.full((CELLS, CELLS), -1)
    for number, (tile, y, x) in enumerate(placed):
        found[y // 2 : y // 2 + cells(tile.height), x // 2 : x // 2 + cells(tile.width)] = number
    return found


@njit(nogil=True, cache=True)  # compiling takes an actor seconds
def _average(photo, window, size, corner, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Part of the window averaged to ``size``, from row and column ``corner`` on, as (mean - 127.5) / 128.

    photo uint8 [h, 3 w], window (y0, x0, y1, x1) in it, out float32 [rows, columns, 3]. Bin i of n over a side s is
    [floor(i s / n), ceil((i + 1) s / n)), torch's adaptive average with its rounding: sum / height / width. Rows are
    slices, as an offset in the index keeps the compiler from eight pixels at a time.
    """
    y0, x0, y1, x1 = window
    rows, columns = size
    n = out.shape[1]
    begins, ends, wide = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.float32)
    for j in range(n):
        begins[j] = x0 + (corner[1] + j) * (x1 - x0) // columns
        ends[j] = x0 + ((corner[1] + j + 1) * (x1 - x0) + columns - 1) // columns
        wide[j] = ends[j] - begins[j]
    first, last = begins[0], ends[n - 1]
    line = np.empty(3 * (last - first), np.uint32)
    for i in range(out.shape[0]):
        upper = y0 + (corner[0] + i) * (y1 - y0) // rows
        lower = y0 + ((corner[0] + i + 1) * (y1 - y0) + rows - 1) // rows
        line[:] = 0
        for y in range(upper, lower):
            pixels = photo[y, 3 * first : 3 * last]
            for k in range(len(line)):
                line[k] += pixels[k]
        tall = np.float32(lower - upper)
        for j in range(n):
            bin_ = line[3 * (begins[j] - first) : 3 * (ends[j] - first)]
            for c in range(3):
                total = np.uint32(0)
                for k in range(c, len(bin_), 3):
                    total += bin_[k]
                out[i, j, c] = (np.float32(total) / tall / wide[j] - np.float32(127.5)) * np.float32(
                    0.0078125
                )
