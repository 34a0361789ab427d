"""Counts of what a step asks of the device: operations that launch a kernel, and operations that make the host wait."""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = frozenset(
    [
        "view",
        "permute",
        "t",
        "expand",
        "detach",
        "slice.Tensor",
        "split.Tensor",
        "split_with_sizes",
        "select.int",
        "unsqueeze",
        "squeeze.dim",
        "alias",
        "transpose.int",
        "as_strided",
        "empty.memory_format",
        "empty_like",
        "empty_strided",
        "_unsafe_view",
        "unbind.int",
    ]
)
"""Operations that launch nothing."""
WAITS = frozenset(
    [
        "_local_scalar_dense",
        "nonzero",
        "_unique2",
        "unique_consecutive",
        "lift_fresh",
        "masked_select",
        "is_nonzero",
        "equal",
        "repeat_interleave.Tensor",
    ]
)
"""Operations for which the host waits until the device has done all before: a number is read, or a shape depends on data."""


PINNED = "on_device"
"""The function that copies from the host through pinned memory, for which the host does not wait."""


class Dispatched(TorchDispatchMode):
    """Within: counts the operations by kind, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.waits: Counter[str] = Counter()
        """By operation and line of the package."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.name().removeprefix("aten::")
        self.launches += name not in VIEWS
        if name in WAITS or (name.startswith("index") and _by_mask(args)):
            function, line = _place()
            if function != PINNED:
                self.waits[f"{name} in {line}"] += 1
        return operation(*args, **(kwargs or {}))


def _by_mask(args: Any) -> bool:
    """Whether one of an operation's indices is a mask, whose true places have to be counted first."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)


def _place() -> tuple[str, str]:
    """The function of the package that asks, and its line."""
    inside = [frame for frame in traceback.extract_stack() if "/facerec/" in frame.filename]
    return (
        (inside[-1].name, f"{inside[-1].filename.rsplit('/', 1)[-1]}:{inside[-1].lineno}")
        if inside
        else ("", "?")
    )
