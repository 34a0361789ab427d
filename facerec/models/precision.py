"""Full or half precision: one rule for training and for embedding."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Precision = Literal["auto", "fp32", "bf16"]


def settled(precision: Precision, network: nn.Module, gpu: bool) -> Literal["fp32", "bf16"]:
    """fp32 or bf16: what ``auto`` chooses on this machine.

    Depthwise networks are slower in bf16 on a CPU, and so is every network on a CPU without bf16 instructions, or on a GPU
    that emulates them (before Ampere). Where ``gpu`` is true and this machine has none, as the driver of a cluster, the
    GPUs of the workers are taken to have bf16.
    """
    if precision != "auto":
        return precision
    depthwise = any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in network.modules())
    if gpu:
        pays = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        pays = torch.cpu._is_avx512_bf16_supported() and not depthwise
    return "bf16" if pays else "fp32"


def full_or_half(device: torch.device, precision: str) -> torch.autocast:
    """Within: matrix products in bf16 where ``precision`` says so. Distances and losses stay outside of it, in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
