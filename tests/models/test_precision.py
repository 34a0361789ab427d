"""What precision ``auto`` chooses."""

from __future__ import annotations

import pytest
import torch

from facerec.models.precision import settled


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
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    network = torch.nn.Conv2d(3, 8, 1)
    assert settled("auto", network, gpu) == precision
    assert settled("bf16", network, gpu) == "bf16", "as it was asked for"
