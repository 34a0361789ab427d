"""BatchNorm whose result does not depend on the number of workers.

A micro-batch is normalised by its own statistics, as always. The running statistics take one momentum step per *global*
batch, towards the mean of the means and unbiased variances of all G micro-batches. Plain BatchNorm would take one step
per micro-batch, of the micro-batches of this rank only.

All running statistics of a network are views of one tensor. Layer by layer, this bookkeeping was 43 % of the operations
that a step of InceptionResnetV1 launched; on a GPU, each launch costs as much as the arithmetic of a small layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from facerec.training.gather import all_reduce

MOMENTUM = 0.1
"""Of a layer that has none, because it was built for the cumulative mean."""


class RunningStatistics:
    """The running statistics of all BatchNorm layers of a network, as views of one tensor.

    Means, variances and counters keep their names in ``state_dict`` and their addresses in memory.
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = tracking_layers(network)
        self._flatten()

    @contextlib.contextmanager
    def collected(self, groups: int) -> Iterator[Callable[[Tensor | None, int], None]]:
        """Within: call what is yielded after each forward, with None after a forward of one micro-batch, or with the mean
        of the statistics of several, in the order of this table, and their number. At the end the running statistics take
        their one step, towards the mean over the ``groups`` micro-batches of all ranks. Collective.

        During the forwards momentum is 1, so that a layer's running statistics *are* those of its last micro-batch.
        """
        if not self._layers:
            yield lambda _mean, _count: None
            return
        if not self._are_views():  # the network was moved or cast
            self._flatten()
        before, total = self._table.clone(), torch.zeros_like(self._table)
        for layer in self._layers:
            layer.momentum, layer.num_batches_tracked = 1.0, None

        def collect(mean: Tensor | None, count: int) -> None:
            total.add_(self._table if mean is None else mean, alpha=count)

        yield collect
        mean = all_reduce(total) / groups
        # By .data: backward refuses statistics that changed since the forward, although it does not read them.
        self._table.data.copy_(self._kept * before + self._step * mean)
        self._counts += 1  # global batches, whatever the number of ranks
        for layer, momentum, count in zip(self._layers, self._momenta, self._counts.unbind(), strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count

    def _flatten(self) -> None:
        """Move the statistics into one tensor."""
        if not self._layers:
            return
        vectors = [vector for layer in self._layers for vector in statistics_of(layer)]
        self._table = torch.cat(vectors)
        self._counts = torch.stack([_count(layer) for layer in self._layers])
        self._momenta = [layer.momentum for layer in self._layers]
        steps = [MOMENTUM if momentum is None else momentum for momentum in self._momenta]
        sizes = [2 * layer.num_features for layer in self._layers]
        self._step, self._kept = (
            self._per_number(each, sizes) for each in (steps, [1 - step for step in steps])
        )
        views = iter(torch.split(self._table, [len(vector) for vector in vectors]))
        for layer, count in zip(self._layers, self._counts.unbind(), strict=True):
            layer.running_mean, layer.running_var, layer.num_batches_tracked = next(views), next(views), count

    def _per_number(self, values: list[float], sizes: list[int]) -> Tensor:
        """One value per layer as a vector that is as long as the table."""
        return torch.cat(
            [self._table.new_full((size,), value) for value, size in zip(values, sizes, strict=True)]
        )

    def _are_views(self) -> bool:
        memory = self._table.untyped_storage().data_ptr()
        return all(
            vector.untyped_storage().data_ptr() == memory
            for layer in self._layers
            for vector in statistics_of(layer)
        )


@contextlib.contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Within: forwards do not change running statistics. For a forward that repeats an earlier one."""
    layers = tracking_layers(model)
    for layer in layers:
        layer.track_running_stats = False
    yield
    for layer in layers:
        layer.track_running_stats = True


def calibrate(model: nn.Module, micro_batches: Iterator[Tensor]) -> None:
    """Set running statistics to the plain mean over micro-batches, images [m, 3, side, side] each; no training.

    An untrained network needs this before it can be scored, because its running statistics are still 0 and 1.
    """
    layers = tracking_layers(model)
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


def tracking_layers(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running statistics now, in the order of ``modules``."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [layer for layer in layers if layer.track_running_stats]


def statistics_of(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and running variance [channels] of such a layer."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def _count(layer: _BatchNorm) -> Tensor:
    assert layer.num_batches_tracked is not None
    return layer.num_batches_tracked
