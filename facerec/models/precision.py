"""Full or half precision: one rule for training and for embedding."""

from __future__ import annotations

import functools
import time
from typing import Literal

import torch
from torch import nn

Precision = Literal["auto", "fp32", "bf16"]
GAIN = 0.8
"""Of the time in fp32: bf16 loses digits, so it must gain more than noise."""


def settled(precision: Precision, network: nn.Module, gpu: bool) -> Literal["fp32", "bf16"]:
    """fp32 or bf16: what ``auto`` chooses on this machine.

    bf16 is chosen if it is faster. Depthwise networks are slower in bf16 on a CPU, and so is every network on a CPU
    without bf16 instructions or with slow ones, or on a GPU that emulates them (before Ampere). If ``gpu`` is true and this
    machine has none, as the driver of a cluster, the GPUs of the workers are taken to have bf16.
    """
    if precision != "auto":
        return precision
    depthwise = any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in network.modules())
    if gpu:
        pays = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        pays = not depthwise and cpu_gains_from_bf16()
    return "bf16" if pays else "fp32"


@functools.cache
def cpu_gains_from_bf16() -> bool:
    """Whether a convolution and its backward take at most GAIN of their time in fp32; measured once, in 0.2 s.

    The instructions alone do not say so: an Intel Xeon with avx512_bf16 but without AMX takes 1.8 times as long in bf16.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    times = [_convolved() for _ in range(5)]
    return min(half for _, half in times) <= GAIN * min(full for full, _ in times)


def _convolved() -> tuple[float, float]:
    """Seconds of a convolution and its backward in fp32 and in bf16."""
    layer = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    images = torch.zeros(16, 64, 28, 28).contiguous(memory_format=torch.channels_last)
    seconds = []
    for precision in ("fp32", "bf16"):
        began = time.perf_counter()
        with full_or_half(images.device, precision):
            loss = layer(images).sum()
        loss.backward()
        seconds.append(time.perf_counter() - began)
    return seconds[0], seconds[1]


def full_or_half(device: torch.device, precision: str) -> torch.autocast:
    """Within: matrix products in bf16 where ``precision`` says so. Distances and losses stay outside of it, in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
