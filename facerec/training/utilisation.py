"""How much arithmetic a run does, and which share of the device's peak that is: model FLOP utilisation.

Model FLOPs are those of one forward and backward of each face. A forward that gradient caching repeats is not counted
(Chowdhery et al. 2022, PaLM, appendix B, https://arxiv.org/abs/2204.02311).
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from facerec.training.launches import TRIED

PEAKS = {
    "B200": 2250,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10G": 70,
}
"""Peak TFLOP/s in bf16 without sparsity, from NVIDIA's data sheets, by a part of the device's name; the first that fits."""


def flops_per_face(network: nn.Module, side: int) -> int | None:
    """Floating-point operations of a forward and backward; None if the network cannot be run without data."""
    shape = deepcopy(network).to("meta").train()
    try:
        with FlopCounterMode(display=False) as counter:
            shape(torch.zeros(TRIED, 3, side, side, device="meta")).sum().backward()
    except (NotImplementedError, RuntimeError):
        return None
    return int(counter.get_total_flops()) // TRIED


def utilisation(
    faces_per_s: float, per_face: int | None, workers: int, device: str, precision: str
) -> dict[str, float]:
    """``tflops``, model TFLOP/s of one worker, and ``mfu``, its share of the peak; without what is not known.

    ``device`` is the name of a GPU; empty for a CPU, whose peak is not known.
    """
    if per_face is None:
        return {}
    tflops = faces_per_s * per_face / workers / 1e12
    peak = next((peak for name, peak in PEAKS.items() if name in device), None)
    return {"tflops": tflops} | ({"mfu": tflops / peak} if peak and precision == "bf16" else {})
