"""What precision ``auto`` chooses."""

from __future__ import annotations

import pytest
import torch

from facerec.models import precision as precision_rule
from facerec.models.precision import cpu_gains_from_bf16, settled


@pytest.mark.parametrize(
    ("gpu", "there", "native", "precision"),
    [
        (True, True, True, "bf16"),
        (True, True, False, "fp32"),
        (True, False, False, "bf16"),
        (False, True, True, "fp32"),
    ],
)
def test_bf16_is_chosen_on_a_gpu_that_has_it_and_not_on_one_that_emulates_it(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, there: bool, native: bool, precision: str
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(precision_rule, "cpu_gains_from_bf16", lambda: False)
    network = torch.nn.Conv2d(3, 8, 1)
    assert settled("auto", network, gpu) == precision
    assert settled("bf16", network, gpu) == "bf16", "as it was asked for"


@pytest.mark.parametrize(
    ("supported", "half_ms", "depthwise", "chosen"),
    [
        (True, 5.0, False, "bf16"),
        (True, 5.0, True, "fp32"),
        (True, 18.0, False, "fp32"),  # an Intel Xeon without AMX
        (False, 5.0, False, "fp32"),
    ],
)
def test_bf16_is_chosen_on_a_cpu_that_is_faster_by_it(
    monkeypatch: pytest.MonkeyPatch, supported: bool, half_ms: float, depthwise: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    monkeypatch.setattr(precision_rule, "_convolved", lambda: (10.0, half_ms))
    cpu_gains_from_bf16.cache_clear()
    try:
        assert settled("auto", torch.nn.Conv2d(8, 8, 1, groups=8 if depthwise else 1), False) == chosen
    finally:
        cpu_gains_from_bf16.cache_clear()


def test_the_time_of_a_convolution_is_measured_in_both_precisions() -> None:
    full, half = precision_rule._convolved()
    assert 0 < full < 10
    assert 0 < half < 10
