"""The device that a network runs on, and how arrays go to it: in calls of few sizes, and without waiting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from facerec.errors import ConfigError


def name(gpu: bool) -> str:
    """``cuda`` or ``cpu``. Raises ConfigError if a GPU is wanted and torch finds none in this process."""
    if gpu and not torch.cuda.is_available():
        raise ConfigError(
            "gpu is true, but torch finds no GPU here; install torch for CUDA and the driver, or leave out --gpu"
        )
    return "cuda" if gpu else "cpu"


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on the device. To a GPU it goes from pinned memory, for which the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def calls(count: int, sizes: tuple[int, ...]) -> Iterator[tuple[slice, int]]:
    """``count`` inputs in calls of these falling sizes: which inputs, and the size to which the call is padded."""
    at = 0
    while at < count:
        size = next((size for size in sizes if size <= count - at), sizes[-1])
        yield slice(at, min(at + size, count)), size
        at += size
