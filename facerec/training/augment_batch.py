"""The augmentation of a whole micro-batch on the device on which it lies, from the same drawn numbers as `augment`.

OpenCV changes one face at a time on a CPU. At 224 px this takes about 1 ms, so one core feeds at most 1,000 faces/s, and
a GPU trains on several thousand. Here the same changes are 168 operations on all faces of a micro-batch. On a CPU they
are about eight times slower than OpenCV, because the matrix products below do more arithmetic.

Everything that averages along rows and columns is a matrix product: crop, resize, flip, low resolution and blur are one
matrix per face and axis. The matrices hold the weights that OpenCV uses, so no supersampling is needed. A face to which
an effect does not apply gets the identity. Only the rotation is sampled.

Legend: n faces, h stored side, s side of the result. Pixels between the stages are whole grey levels, float32
[n, s, 3, s] with rows before channels before columns: both products of a stage then need no copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from facerec.training.augment import COARSEST, DRAWS, LARGEST_PATCH, WIDEST_BLUR, AugmentConfig

LUMA = (9798 / 2**15, 19235 / 2**15, 3735 / 2**15)
"""Weights of red, green and blue in OpenCV's grey; their products with grey levels are exact in float32."""


def augment_batch(faces: Tensor, drawn: Tensor, side: int, config: AugmentConfig) -> Tensor:
    """Changed faces, RGB uint8 [n, side, side, 3], of square ones, RGB uint8 [n, h, h, 3], on their device.

    ``drawn`` is float64 [n, DRAWS] on the same device: what `augment` gets for each face. Rectangles, mirroring, grey and
    occlusion are those of `augment`; the other pixels differ by rounding (see the tests for the figures). On a GPU
    the products are taken in float16 and summed in float32, which moves a pixel by at most 1 grey level.

    The host never waits for the device, and no shape depends on a draw. Stages that ``config`` leaves out cost nothing.
    At 224 px a face needs up to 2.2 MB while it is changed (at 112 px 1.4 MB); the caller chooses n accordingly.
    """
    assert drawn.shape == (len(faces), DRAWS), f"{tuple(drawn.shape)} draws for {len(faces)} faces"
    with torch.autocast(faces.device.type, enabled=False):  # bfloat16 weights would move pixels by 1 in 256
        pixels = _framed(faces.permute(0, 1, 3, 2), drawn, side, config)
        if config.rotation:
            pixels = _turned(pixels, drawn, config)
        if config.brightness or config.contrast or config.colour:
            pixels = _relit(pixels, drawn, config)
        if config.grey:
            pixels = torch.where(_applies(drawn[:, 10], config.grey), _grey(pixels), pixels)
        if config.low_resolution or config.blur:
            weights = _softening(drawn, side, config)
            pixels = _resampled(pixels, weights, weights)
        if config.occlusion:
            pixels = _hidden(pixels, drawn, config)
        return pixels.permute(0, 1, 3, 2).to(torch.uint8, memory_format=torch.contiguous_format)


def augmented(
    faces: Tensor,
    drawn: Tensor,
    side: int,
    config: AugmentConfig,
    *,
    rows: int,
    device: torch.device,
    compiled: bool = False,
) -> Tensor:
    """`augment_batch` of faces on the host, ``rows`` at a time on the device, where all results stay.

    A face's pixels do not depend on how many micro-batches this rank has. If both inputs lie in pinned memory, the host
    does not wait for them to be copied.
    """
    change = _compiled() if compiled else augment_batch
    images = torch.empty((len(faces), side, side, 3), dtype=torch.uint8, device=device)
    with torch.no_grad():  # in training as in calibration, so that it is compiled once
        for at in range(0, len(faces), rows):
            part, numbers = (
                tensor[at : at + rows].to(device, non_blocking=True) for tensor in (faces, drawn)
            )
            images[at : at + rows] = change(part, numbers, side, config)
    return images


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(augment_batch, dynamic=False, fullgraph=True)


def _framed(pixels: Tensor, drawn: Tensor, side: int, config: AugmentConfig) -> Tensor:
    """Cropped, resized to the side, and mirrored. A turn comes after the mirroring and is reversed with it."""
    h = pixels.shape[1]
    if h == side and not config.crop and not config.flip:
        return pixels.float()
    length = (h * (1 - config.crop * drawn[:, 1:2])).round()
    start = ((h - length) * drawn[:, 2:4]).round()  # left and top
    down = _centres(side, drawn.device, torch.float64)
    across = torch.where(drawn[:, :1] < config.flip, side - down, down)
    centres = torch.stack([across, down.expand_as(across)], dim=1)
    length = length[:, :, None]
    columns, rows = _weights(centres, start[:, :, None], length, length / side, h).unbind(1)
    return _resampled(pixels, rows, columns)


def _weights(centres: Tensor, start: Tensor | int, length: Tensor, scale: Tensor, inputs: int) -> Tensor:
    """Weights [n, k, outputs, inputs] with which pixels make those of another resolution, as `resize` takes them.

    ``centres`` are those of the made pixels, [outputs] or more, in their own pixels. Each is as wide as ``scale`` inputs.
    Only the ``length`` inputs from ``start`` on have weight (all [n, k, 1]). The weight falls with the distance of two centres.
    Where ``scale`` is above 1, it is the part of an input that the made pixel covers (INTER_AREA), else INTER_LINEAR.
    """
    nearest = start + (centres * scale).clamp_min(0.5).minimum(length - 0.5)
    width = scale.clamp_min(1).float()[..., None]
    distance = (nearest.float()[..., None] - _centres(inputs, scale.device, torch.float32)).abs_()
    return torch.sub((width + 1) / 2, distance).clamp_(0, 1).div_(width)


def _centres(count: int, device: torch.device, kind: torch.dtype) -> Tensor:
    return torch.arange(0.5, count, dtype=kind, device=device)


def _resampled(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Grey levels [n, t, 3, t] of pixels [n, s, 3, s], with weights [n, t, s] along each axis."""
    n, t, s = rows.shape
    product = _product(rows, pixels.reshape(n, s, 3 * s))
    product = _product(product.view(n, 3 * t, s), columns.mT)
    whole = product.view(n, t, 3, t).float().add_(0.5).floor_()  # halves go up, as in OpenCV's fixed point
    return whole.clamp_max_(255)  # weights in float16 may add up to more than 1


def _product(left: Tensor, right: Tensor) -> Tensor:
    kind = _kind(left.device)
    return torch.bmm(left.to(kind), right.to(kind))


def _kind(device: torch.device) -> torch.dtype:
    """Of the factors: float16 holds grey levels exactly, and a GPU multiplies it on its tensor cores."""
    return torch.float16 if device.type == "cuda" else torch.float32


def _turned(pixels: Tensor, drawn: Tensor, config: AugmentConfig) -> Tensor:
    angle = (config.rotation * (2 * drawn[:, 4] - 1)).deg2rad()
    angle = torch.where(drawn[:, 0] < config.flip, -angle, angle)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3).float()
    images = pixels.permute(0, 2, 1, 3)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    turned = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return turned.add_(0.5).floor_().permute(0, 2, 1, 3)


def _relit(pixels: Tensor, drawn: Tensor, config: AugmentConfig) -> Tensor:
    brightness = config.brightness * (2 * drawn[:, 5:6] - 1)
    contrast = 1 + config.contrast * (2 * drawn[:, 6:7] - 1)
    gains = 1 + config.colour * (2 * drawn[:, 7:10] - 1)
    scale, shift = contrast * gains, (127.5 * (1 - contrast) + 255 * brightness) * gains
    scale, shift = (factor.float()[:, None, :, None] for factor in (scale, shift))
    return torch.addcmul(shift, pixels, scale).round_().clamp_(0, 255)


def _grey(pixels: Tensor) -> Tensor:
    """[n, s, 1, s]."""
    red, green, blue = (level * part for level, part in zip(pixels.unbind(2), LUMA, strict=True))
    return (red + green + blue + 0.5).floor_()[:, :, None]


def _applies(draw: Tensor, probability: float) -> Tensor:
    return (draw < probability)[:, None, None, None]


def _softening(drawn: Tensor, side: int, config: AugmentConfig) -> Tensor:
    """Weights [n, s, s] along both axes: shrunk and enlarged, then blurred; the identity where neither applies."""
    weights = torch.eye(side, device=drawn.device).expand(len(drawn), side, side)
    if config.low_resolution:
        weights = _coarsened(drawn, side, config)
    return _blurred(weights, drawn, config) if config.blur else weights


def _coarsened(drawn: Tensor, side: int, config: AugmentConfig) -> Tensor:
    """A shrunk face has at most as many pixels; the enlarging gives those beyond its own no weight."""
    low, coarse = drawn[:, 13:14], drawn[:, 14:15]
    length = (side * (COARSEST + (1 - COARSEST) * coarse)).round().clamp_min(1)
    length = torch.where(low < config.low_resolution, length, side)[:, :, None]
    whole = torch.full_like(length, side)
    lengths, scales = torch.cat([whole, length], dim=1), torch.cat([side / length, length / side], dim=1)
    centres = _centres(side, drawn.device, torch.float64)
    shrink, enlarge = _weights(centres, 0, lengths, scales, side).unbind(1)
    return _product(enlarge, shrink).float()


def _blurred(weights: Tensor, drawn: Tensor, config: AugmentConfig) -> Tensor:
    """Each face's weights [n, s, s] blurred along the rows, mirrored about the outermost pixels (BORDER_REFLECT_101)."""
    n, side, _ = weights.shape
    blur, sigma = drawn[:, 11:12], (side * WIDEST_BLUR * drawn[:, 12:13]).clamp_min(0.1)
    radius = torch.where(blur < config.blur, ((6 * sigma + 1).round() / 2).floor(), 0)  # OpenCV's, for 8 bits
    most = round(6 * max(side * WIDEST_BLUR, 0.1) + 1) // 2
    taps = torch.arange(-most, most + 1, device=drawn.device)
    kernel = torch.where(taps.abs() <= radius, torch.exp(-((taps / sigma) ** 2) / 2), 0)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).float()
    padded = F.pad(weights, (0, 0, most, most), mode="reflect")
    return F.conv2d(padded[None], kernel[:, None, :, None], groups=n)[0]


def _hidden(pixels: Tensor, drawn: Tensor, config: AugmentConfig) -> Tensor:
    """A patch of the face's mean colour over a part of it."""
    side = pixels.shape[1]
    size = (side * LARGEST_PATCH * (0.2 + 0.8 * drawn[:, 16:18])).round().clamp_min(1)
    first = ((side - size) * drawn[:, 18:20]).round()
    places = torch.arange(side, device=drawn.device)
    within = (places >= first[:, :, None]) & (places < (first + size)[:, :, None])
    columns, rows = within.unbind(1)
    hidden = rows[:, :, None, None] & columns[:, None, None, :] & _applies(drawn[:, 15], config.occlusion)
    mean = (pixels.sum(dim=(1, 3), keepdim=True, dtype=torch.float64) * (1 / side**2)).floor().float()
    return torch.where(hidden, mean, pixels)
