"""Several micro-batches in one forward, as if they had been embedded one after another.

A GPU that waits for kernel launches takes as long for 64 faces as for 128 (79 and 87 ms on an H100). The micro-batch stays the unit of
BatchNorm statistics and of dropout (so the gradient does not depend on how many share a forward); only the launches
are shared. In float64 embeddings, gradients and statistics agree with those of single micro-batches to 1e-12.

`torch.compile` fuses what this adds in eager mode: the normalisation is written as plain operations, because the
library's kernels know one set of statistics per call.

Legend: g micro-batches in a forward, m faces of each, n = g * m, s image side, d embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from facerec.errors import ConfigError
from facerec.models.images import normalize
from facerec.models.precision import full_or_half
from facerec.training.batchnorm import statistics_of, tracking_layers

TRIED = 2
"""Faces of the forward that finds out what a network calls: the fewest that BatchNorm takes."""
MOST_FACES = 1024
"""Faces in one forward: an activation of 2^31 numbers or more needs slower kernels."""
MEMORY_SHARE = 0.4
"""Of a GPU's free memory, for the graph of a forward: the rest is for the backward's own, the loss and fragmentation. An
estimate: it was not measured on a GPU."""


@dataclass(frozen=True)
class Dropped:
    """A dropout that is active."""

    p: float
    shape: tuple[int, ...]
    """Of one face's features."""
    dtype: torch.dtype


@dataclass
class Calls:
    """What one forward of a network calls, in order."""

    running_means: list[int] = field(default_factory=list)
    """Addresses of the running means of the BatchNorm layers."""
    dropouts: list[Dropped] = field(default_factory=list)


class _Recorded(TorchFunctionMode):
    """Within: writes down the calls."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and args[1] is not None:
            self._calls.running_means.append(args[1].data_ptr())
        if func is F.dropout and (p := _dropped(*args, **kwargs)):
            self._calls.dropouts.append(Dropped(p, tuple(args[0].shape[1:]), args[0].dtype))
        return func(*args, **kwargs)


class _ByGroups(TorchFunctionMode):
    """Within: BatchNorm of each group by itself, and dropout that keeps what given masks say.

    ``statistics`` receives mean and unbiased variance, [channels] each and averaged over the groups, of each BatchNorm
    call whose layer keeps running statistics.
    """

    def __init__(self, groups: int, masks: Sequence[Tensor], statistics: list[Tensor]) -> None:
        super().__init__()
        self._groups, self._masks, self._statistics = groups, list(masks), statistics

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._normalised(*args, **kwargs)
        if func is F.dropout and (p := _dropped(*args, **kwargs)):
            return torch.where(self._masks.pop(0), args[0] * (1 / (1 - p)), 0)
        return func(*args, **kwargs)

    def _normalised(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """torch's batch_norm of [n, channels, ...], by groups of m rows."""
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        parts = torch.unflatten(x, 0, (self._groups, -1))
        parts = parts if parts.dtype == torch.float64 else parts.float()
        of_one = [1, *range(3, parts.ndim)]
        var, mean = torch.var_mean(parts, of_one, correction=0, keepdim=True)
        if running_mean is not None:
            count = parts.numel() // mean.numel()
            self._statistics.append(mean.detach().flatten(1).mean(0))
            self._statistics.append(var.detach().flatten(1).mean(0) * (count / (count - 1)))
        normal = (parts - mean) * torch.rsqrt(var + eps)
        channels = (1, 1, -1, *(1 for _ in range(3, parts.ndim)))
        if weight is not None:
            normal = normal * weight.view(channels)
        if bias is not None:
            normal = normal + bias.view(channels)
        return torch.flatten(normal.to(x.dtype), 0, 1)


class SharedForward:
    """Embeds g micro-batches in one forward, compiled if ``backend`` names a compiler of torch.compile.

    ``cuda_graphs`` replays the compiled kernels as one CUDA graph each for forward and backward. The caller then keeps
    the gradients' memory (``zero_grad(set_to_none=False)``): a gradient that is the graph's own output is overwritten by
    the next one (https://github.com/pytorch/pytorch/issues/169545).
    """

    def __init__(
        self, network: nn.Module, precision: str, backend: str | None = None, cuda_graphs: bool = False
    ) -> None:
        self._network, self._precision, self._cuda_graphs = network, precision, cuda_graphs
        self._calls: Calls | None = None
        self._order: list[int] = []
        self._run: Callable[..., tuple[Tensor, Tensor | None]] = self._forward
        if backend:
            options: Any = {"triton.cudagraphs": True} if cuda_graphs else None
            self._run = torch.compile(
                self._forward, fullgraph=True, dynamic=False, backend=backend, options=options
            )

    def __call__(self, images: Tensor, seeds: Sequence[int], alone: bool) -> tuple[Tensor, Tensor | None]:
        """Embeddings [n, d] of images on the network's device, uint8 [n, s, s, 3] or the network's input.

        The second result is the mean of the micro-batches' BatchNorm statistics, in the order of
        :class:`batchnorm.RunningStatistics`; None if the layers do not track them. ``alone``: no tensor of an earlier
        forward is in use, so that CUDA graphs may take its memory.
        """
        calls = self._find_calls(images)
        if alone and self._cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        torch.manual_seed(seeds[0])
        masks = _masks(calls.dropouts, seeds, len(images) // len(seeds), images.device)
        embeddings, statistics = self._run(images, len(seeds), masks)
        # A CUDA graph's outputs are overwritten by its next replay.
        return embeddings.clone() if self._cuda_graphs else embeddings, statistics

    def _forward(self, images: Tensor, groups: int, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        images = as_input(images)
        found: list[Tensor] = []
        with full_or_half(images.device, self._precision), _ByGroups(groups, masks, found):
            embeddings = self._network(images)
        pairs = [torch.cat(found[2 * place : 2 * place + 2]) for place in self._order] if found else []
        return embeddings, torch.cat(pairs) if pairs else None

    def _find_calls(self, images: Tensor) -> Calls:
        """What the network calls; found out by a forward of TRIED faces, once."""
        if self._calls is None:
            self._calls = Calls()
            few = as_input(images[:TRIED])
            with torch.no_grad(), full_or_half(images.device, self._precision), _Recorded(self._calls):
                self._network(few)
            self._order = _in_order(self._network, self._calls.running_means)
        return self._calls


def as_input(images: Tensor) -> Tensor:
    """The network's input of pixels, uint8 [n, s, s, 3]; floats are taken to be its input already."""
    return normalize(images) if images.dtype == torch.uint8 else images


def even(count: int, most: int) -> list[int]:
    """``count`` micro-batches cut into the fewest forwards of at most ``most``; sizes that differ by one at most.

    A compiler sees two shapes at most.
    """
    forwards = -(-count // max(1, most))
    each, more = divmod(count, forwards)
    return [each + (number < more) for number in range(forwards)]


def that_fit(free: int, per_face: int, micro_batch: int, own: int) -> int:
    """Micro-batches whose graph takes a share MEMORY_SHARE of the ``free`` bytes, and at most MOST_FACES faces; 1 or more."""
    faces = min(MOST_FACES, int(free * MEMORY_SHARE) // max(1, per_face))
    return max(1, min(faces // micro_batch, own))


def kept_bytes(network: nn.Module, side: int, precision: str) -> int:
    """Bytes a face that the graph of one forward keeps for the backward, seen on TRIED blank faces.

    ``network`` is on the CPU; its running statistics are changed. Not collective: a rank may ask alone.
    """
    network = network.train().to(memory_format=torch.channels_last)
    kept: dict[int, int] = {}
    known = {tensor.data_ptr() for tensor in chain(network.parameters(), network.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in known:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    faces = normalize(torch.zeros(TRIED, side, side, 3, dtype=torch.uint8))
    keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with keeping, full_or_half(faces.device, precision):
        embedded = network(faces)  # held until all is counted, so that no address is used twice
        total = sum(kept.values())
    del embedded
    return total // TRIED


def _in_order(network: nn.Module, called: Sequence[int]) -> list[int]:
    """For each layer with running statistics, in the order of RunningStatistics, the number of its call."""
    means = [statistics_of(layer)[0].data_ptr() for layer in tracking_layers(network)]
    if sorted(means) != sorted(called):
        raise ConfigError(
            "the backbone calls a BatchNorm layer twice or not at all, so several micro-batches cannot share a "
            "forward; set --compile false --shared_forward 1"
        )
    return [called.index(mean) for mean in means]


def _masks(dropouts: Sequence[Dropped], seeds: Sequence[int], m: int, device: torch.device) -> list[Tensor]:
    """What each dropout keeps, bool [n, ...]: as the micro-batches would have drawn it by themselves."""
    drawn: list[list[Tensor]] = [[] for _ in dropouts]
    for seed in seeds if dropouts else ():
        torch.manual_seed(seed)
        for layer, parts in zip(dropouts, drawn, strict=True):
            ones = torch.ones(m, *layer.shape, dtype=layer.dtype, device=device)
            parts.append(F.dropout(ones, layer.p) > 0)
    return [torch.cat(parts) for parts in drawn]


def _dropped(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> float:  # noqa: ARG001
    """The share of its input that this call of F.dropout drops; 0 if it draws no numbers."""
    return p if training else 0.0
