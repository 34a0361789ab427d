"""Micro-batches that share a forward give what they give one after another: vectors, gradients, statistics, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from facerec.errors import ConfigError
from facerec.models.embedder import ModelConfig, build
from facerec.training import batchnorm
from facerec.training.config import TrainConfig
from facerec.training.launches import even, kept_bytes, that_fit
from facerec.training.mining import Miner, MiningConfig
from facerec.training.step import MicroBatches, descend
from tests.support.ddp import run_ddp
from tests.support.dispatch import Dispatched
from tests.training.test_gradient import our_step

STEPS: list[tuple[int, Miner]] = [(6, "semi_hard"), (7, "batch_hard")]
"""(micro-batches, miner)."""
RESIDUAL = ModelConfig(backbone="resnet10t", side=32, dropout=0.3)
BACKBONES = [
    (ModelConfig(backbone="inception_resnet_v1", side=80, dropout=0.2), None),
    (ModelConfig(side=64, dropout=0.3), None),
    (RESIDUAL, None),
    (RESIDUAL, "aot_eager"),
]
DROPOUTS = 5
"""Launches by which one more mask is drawn."""


def shared_and_single_steps() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [
        (
            our_step(groups, miner, True, False, cache, shared=shared, backend=backend),
            our_step(groups, miner, True, False, cache),
        )
        for groups, miner in STEPS
        for cache in (False, True)
        for shared, backend in ((2, None), (3, None), (7, None), (2, "aot_eager"))
    ]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_step_in_shared_forwards_is_the_same_step(workers: int) -> None:
    """Also where a rank's micro-batches are cut unevenly, as 7 by 2 are, and compiled within DDP."""
    for steps in run_ddp(workers, shared_and_single_steps):
        for shared, single in steps:
            assert shared["loss"] == pytest.approx(single["loss"], abs=1e-12)
            assert shared["active"] == single["active"]
            torch.testing.assert_close(shared["gradient"], single["gradient"], rtol=0, atol=1e-12)
            assert shared["buffers"].keys() == single["buffers"].keys()
            for name, buffer in single["buffers"].items():
                torch.testing.assert_close(shared["buffers"][name], buffer, rtol=0, atol=1e-12)


def embedded(config: ModelConfig, groups: int, m: int, **how: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, gradient and statistics of one step's micro-batches in float64."""
    network = build(config, 0).double().to(memory_format=torch.channels_last)
    images = torch.randn(
        groups * m, 3, config.side, config.side, dtype=torch.float64, generator=torch.manual_seed(1)
    )
    vectors = MicroBatches(network, groups, **how)(images, range(groups))
    weights = torch.randn(vectors.shape, dtype=vectors.dtype, generator=torch.manual_seed(2))
    (vectors * weights).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    statistics = torch.cat([buffer.flatten().double() for buffer in network.buffers()])
    return vectors.detach(), gradient, statistics


@pytest.mark.parametrize(("config", "backend"), BACKBONES)
def test_backbones_embed_alike_in_one_forward_and_in_four(config: ModelConfig, backend: str | None) -> None:
    """In each layer's own kind of BatchNorm, as timm's with an activation in it; with dropout, and compiled."""
    for got, expected in zip(
        embedded(config, 4, 3, shared=4, backend=backend), embedded(config, 4, 3), strict=True
    ):
        assert float((got - expected).norm() / expected.norm()) < 1e-8


def test_dropout_draws_in_a_shared_forward_what_each_micro_batch_would_draw() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 16, bias=False), nn.Dropout(0.25))
    nn.init.eye_(network[1].weight)  # type: ignore[arg-type]
    ones = torch.ones(12, 16)
    shared, single = (MicroBatches(network, 4, shared=at_once)(ones, [7, 8, 9, 10]) for at_once in (4, 1))
    assert torch.equal(shared, single)
    assert len({tuple(row) for row in shared.tolist()}) > 10


def test_the_launches_of_a_shared_forward_do_not_grow_with_its_micro_batches() -> None:
    network, images = build(RESIDUAL, 0), torch.zeros(16, 32, 32, 3, dtype=torch.uint8)

    def launches(shared: int, groups: int) -> int:
        model = MicroBatches(network, groups, shared=shared)
        model(images[: 2 * groups], range(groups))  # the first finds out what the network calls
        with Dispatched() as counted:
            model(images[: 2 * groups], range(groups)).sum().backward()
        return counted.launches

    one, eight = launches(1, 1), launches(1, 8)
    assert eight > 7 * one
    assert launches(8, 8) - launches(2, 2) == 6 * DROPOUTS  # masks are drawn one by one
    assert launches(8, 8) < 0.7 * eight  # before a compiler fuses them


@pytest.mark.parametrize(("cache", "graphs"), [(False, 1), (True, 2)])
def test_a_run_is_compiled_once_and_once_more_for_gradient_caching(cache: bool, graphs: int) -> None:
    compiled = 0

    def backend(module: Any, inputs: Any) -> Callable[..., Any]:  # noqa: ARG001
        nonlocal compiled
        compiled += 1
        forward: Callable[..., Any] = module.forward
        return forward

    torch._dynamo.reset()
    network = build(ModelConfig(backbone="resnet10t", side=32), 0).train()
    model = MicroBatches(network, 6, shared=3, backend=backend)  # type: ignore[arg-type]
    for _ in range(3):
        descend(
            model,
            torch.randint(0, 256, (24, 32, 32, 3), dtype=torch.uint8),
            np.arange(24) // 4,
            np.arange(24),
            seeds=range(6),
            sizes=[24],
            miner="semi_hard",
            mining=MiningConfig(),
            cache=cache,
        )
        network.eval()(torch.zeros(2, 3, 32, 32))  # validation is not compiled
        network.train()
    assert compiled == graphs


def test_forwards_differ_by_one_micro_batch_at_most() -> None:
    assert [even(*case) for case in ((7, 3), (8, 4), (5, 9), (3, 1))] == [[3, 2, 2], [4, 4], [5], [1, 1, 1]]
    assert all(sum(even(count, most)) == count for count in range(1, 40) for most in range(1, 40))


def test_as_many_micro_batches_share_a_forward_as_fit_in_memory() -> None:
    megabyte = 10**6
    assert that_fit(10_000 * megabyte, 10 * megabyte, 64, own=100) == 6  # 400 faces
    assert that_fit(100_000 * megabyte, 10 * megabyte, 64, own=100) == 16  # 1,024 faces at most
    assert that_fit(100_000 * megabyte, 10 * megabyte, 64, own=3) == 3
    assert that_fit(10 * megabyte, 10 * megabyte, 64, own=3) == 1


def test_what_a_graph_keeps_is_found_out_by_one_rank_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where the process group of a run on GPUs can send nothing."""

    def refused(*_arguments: Any) -> Tensor:
        raise AssertionError("a collective")

    monkeypatch.setattr(batchnorm, "all_reduce", refused)
    assert kept_bytes(build(RESIDUAL, 0), 32, "fp32") > 10**5


def test_a_network_that_uses_a_layer_twice_is_refused() -> None:
    norm = nn.BatchNorm1d(4)
    with pytest.raises(ConfigError, match=r"twice.*--shared_forward 1"):
        MicroBatches(nn.Sequential(norm, norm), 2, shared=2)(torch.randn(8, 4), [0, 1])


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [({"shared_forward": 0}, "--shared_forward"), ({"cuda_graphs": True}, "--compile true")],
)
def test_settings_that_do_not_fit_are_one_line(wrong: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        TrainConfig(**wrong)
