"""BatchNorm's bookkeeping: few launches, whatever the number of layers, and bit-equal to one layer after another."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from facerec.models.embedder import ModelConfig, build
from facerec.training.batchnorm import RunningStatistics
from facerec.training.step import MicroBatches
from tests.support.dispatch import Dispatched

GROUPS = 3


def network(blocks: int) -> nn.Module:
    torch.manual_seed(0)
    each = [(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=0.1 + 0.05 * block)) for block in range(blocks)]
    return nn.Sequential(*(layer for pair in each for layer in pair), nn.Flatten()).train()


def images(seed: int, side: int = 4) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(GROUPS * 4, 3, side, side)


def layers(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def by_layer(model: nn.Module, batch: Tensor) -> Tensor:
    """One step with the statistics of each layer by itself."""
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers(model)]  # type: ignore[union-attr]
    sums = [[torch.zeros_like(each) for each in pair] for pair in before]
    momenta = [float(layer.momentum or 0) for layer in layers(model)]
    embedded = []
    for layer in layers(model):
        layer.momentum = 1.0
    for micro_batch in batch.chunk(GROUPS):
        embedded.append(model(micro_batch))
        for layer, total in zip(layers(model), sums, strict=True):
            total[0] += layer.running_mean  # type: ignore[arg-type]
            total[1] += layer.running_var  # type: ignore[arg-type]
    for layer, momentum, old, total in zip(layers(model), momenta, before, sums, strict=True):
        layer.momentum = momentum
        mean, variance = (
            (1 - momentum) * a + momentum * (b / GROUPS) for a, b in zip(old, total, strict=True)
        )
        layer.running_mean, layer.running_var = mean, variance
    return torch.cat(embedded)


def test_statistics_and_gradients_are_bit_equal_to_those_of_each_layer_by_itself() -> None:
    ours, plain = network(4), network(4)
    model = MicroBatches(ours, GROUPS)
    for step in range(3):
        batch = images(step)
        embedded, expected = model(batch, range(GROUPS)), by_layer(plain, batch)
        assert torch.equal(embedded, expected)
        embedded.square().sum().backward()
        expected.square().sum().backward()
    for a, b in zip(layers(ours), layers(plain), strict=True):
        assert torch.equal(a.running_mean, b.running_mean)  # type: ignore[arg-type]
        assert torch.equal(a.running_var, b.running_var)  # type: ignore[arg-type]
        assert int(a.num_batches_tracked) == 3  # type: ignore[arg-type]
        assert a.momentum == b.momentum
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)


def launches(blocks: int) -> tuple[int, int]:
    """Of a forward and backward with the bookkeeping, and without any."""
    with_it, without = network(blocks), network(blocks)
    for layer in layers(without):
        layer.track_running_stats = False
    model = MicroBatches(with_it, GROUPS)
    batch = images(0)
    with Dispatched() as ours:
        model(batch, range(GROUPS)).sum().backward()
    with Dispatched() as plain:
        torch.cat([without(part) for part in batch.chunk(GROUPS)]).sum().backward()
    return ours.launches, plain.launches


def test_the_bookkeeping_launches_as_few_operations_for_many_layers_as_for_one() -> None:
    few, many = (launches(blocks) for blocks in (1, 20))
    assert few[0] - few[1] == many[0] - many[1] <= 9 + GROUPS


def test_inception_launches_no_more_than_its_arithmetic() -> None:
    """3,931 operations a step of two micro-batches were launched; 1,683 of them kept the statistics."""
    model = MicroBatches(build(ModelConfig(backbone="inception_resnet_v1", side=80), 0).train(), 2)
    batch = torch.randn(4, 3, 80, 80)
    with Dispatched() as counted:
        model(batch, range(2))[:, :1].sum().backward()
    assert counted.launches <= 2400


@pytest.mark.parametrize("change", ["copy", "double", "load"])
def test_the_statistics_survive_what_happens_to_a_network(change: str) -> None:
    one, other = network(2), network(2)
    model, oracle = MicroBatches(one, GROUPS), MicroBatches(other, GROUPS)
    model(images(0), range(GROUPS))
    oracle(images(0), range(GROUPS))
    if change == "copy":
        model = deepcopy(model)
        model(images(1), range(GROUPS))  # of the copy alone
        assert not torch.equal(layers(model)[0].running_mean, layers(one)[0].running_mean)  # type: ignore[arg-type]
        model = MicroBatches(one, GROUPS)
    elif change == "double":
        one.double().float()
    else:
        one.load_state_dict(deepcopy(other.state_dict()))
    model(images(2), range(GROUPS))
    oracle(images(2), range(GROUPS))
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_a_network_without_batchnorm_has_none() -> None:
    with RunningStatistics(nn.Linear(2, 2)).collected(GROUPS) as collect:
        collect(None, 1)
