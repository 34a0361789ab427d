"""FLOPs are those of the closed form, and the share of the peak is that of the device by its name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from torch import Tensor, nn

from facerec.errors import ConfigError
from facerec.publish import Dataset
from facerec.telemetry import read_json_lines
from facerec.training.fit import train
from facerec.training.utilisation import flops_per_face, utilisation
from tests.training.test_loop import config_of


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_flops_are_two_a_multiplication_forward_and_backward() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), Mean(), nn.Linear(8, 4)
    )
    convolution, matrix = 2 * 16 * 16 * 8 * 27, 2 * 8 * 4
    weights_and_inputs = 2 * matrix
    assert flops_per_face(network, 16) == convolution + convolution + matrix + weights_and_inputs
    assert all(not parameter.is_meta and parameter.grad is None for parameter in network.parameters())
    assert int(network[1].num_batches_tracked) == 0  # type: ignore[arg-type]


def test_a_network_that_needs_data_has_no_count() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.sum())

    assert flops_per_face(Reads(), 8) is None
    assert utilisation(100.0, None, 1, "", "fp32") == {}


def test_inception_takes_nineteen_gflop_a_face_at_224_px() -> None:
    from facerec.models.embedder import ModelConfig, build

    found = flops_per_face(build(ModelConfig(backbone="inception_resnet_v1", side=224), 0), 224)
    assert found is not None
    assert found / 1e9 == pytest.approx(18.8, abs=0.1)


@pytest.mark.parametrize(
    ("device", "precision", "mfu"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 0.094 / 989 * 1000),
        ("NVIDIA H100 PCIe", "bf16", 0.094 / 756 * 1000),
        ("NVIDIA H200", "bf16", 0.094 / 989 * 1000),
        ("NVIDIA H200", "fp32", None),
        ("Tesla V100", "bf16", None),
        ("", "bf16", None),
    ],
)
def test_the_share_of_the_peak(device: str, precision: str, mfu: float | None) -> None:
    found = utilisation(10_000.0, 18_800_000_000, 2, device, precision)
    assert found["tflops"] == pytest.approx(94.0)
    assert found.get("mfu") == (None if mfu is None else pytest.approx(mfu))


def test_a_run_says_its_model_flops_and_writes_a_trace_of_the_steps_asked_for(
    faces: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(config_of(faces, run, steps=14, profile=2, checkpoint_every=100))
    lines = read_json_lines(str(run / "metrics.jsonl"))
    assert all(line["tflops"] > 0 for line in lines)
    per_face = [line["tflops"] / line["images_per_s"] for line in lines]
    assert per_face == pytest.approx([per_face[0]] * len(lines))
    (trace,) = (run / "profile").iterdir()
    assert trace.name == "step-00000011.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert len([event for event in events if str(event.get("name")).startswith("ProfilerStep#")]) == 2
    assert any("convolution" in str(event.get("name")) for event in events)


def test_fewer_profiled_steps_than_none_are_refused(faces: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--profile"):
        config_of(faces, tmp_path / "run", profile=-1)
