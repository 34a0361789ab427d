"""BatchNorm whose result does not depend on the number of workers.

A micro-batch is normalised by its own statistics, as always. The running statistics take one momentum step a *global*
batch, towards the mean over all G micro-batches of their means and unbiased variances. Left to itself, BatchNorm would
take one step a micro-batch, of this rank's only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from facerec.training.gather import all_reduce


@contextlib.contextmanager
def global_statistics(model: nn.Module, groups: int) -> Iterator[Callable[[], None]]:
    """Within: call what is yielded after each micro-batch. On leaving, running statistics take their one step.

    During the forwards momentum is 1, so that a layer's running statistics *are* those of its last micro-batch.
    """
    layers = _layers(model)
    before = [(layer, layer.momentum, _flat(layer)) for layer in layers]
    counts = [layer.num_batches_tracked.clone() for layer in layers if layer.num_batches_tracked is not None]
    sums = [torch.zeros_like(flat) for _, _, flat in before]
    for layer in layers:
        layer.momentum = 1.0

    def collect() -> None:
        for layer, total in zip(layers, sums, strict=True):
            total += _flat(layer)

    yield collect
    means = _mean_over_groups(sums, groups)
    for (layer, momentum, old), mean, count in zip(before, means, counts, strict=True):
        layer.momentum = momentum
        layer.num_batches_tracked = count + 1  # global batches, whatever the share
        step = 0.1 if momentum is None else momentum
        _put(layer, (1 - step) * old + step * mean)


@contextlib.contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Within: forwards leave no trace in running statistics. For a forward that only repeats an earlier one."""
    layers = _layers(model)
    for layer in layers:
        layer.track_running_stats = False
    yield
    for layer in layers:
        layer.track_running_stats = True


def calibrate(model: nn.Module, micro_batches: Iterator[Tensor]) -> None:
    """Set running statistics to the plain mean over micro-batches, images [m, 3, side, side] each; no training.

    What an untrained network needs before it can be scored: its running statistics are still 0 and 1.
    """
    layers = _layers(model)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for the cumulative mean
    model.train()
    with torch.no_grad():
        for images in micro_batches:
            model(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _layers(model: nn.Module) -> list[_BatchNorm]:
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [layer for layer in layers if layer.track_running_stats]


def _flat(layer: _BatchNorm) -> Tensor:
    """Mean and variance as one vector, a copy."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return torch.cat([layer.running_mean, layer.running_var])


def _put(layer: _BatchNorm, flat: Tensor) -> None:
    # New tensors, because the graph of the forwards holds the old ones and backward refuses changed ones.
    layer.running_mean, layer.running_var = flat.chunk(2)[0].clone(), flat.chunk(2)[1].clone()


def _mean_over_groups(sums: list[Tensor], groups: int) -> list[Tensor]:
    if not sums:
        return []
    total = all_reduce(torch.cat(sums)) / groups
    return list(torch.split(total, [len(vector) for vector in sums]))
