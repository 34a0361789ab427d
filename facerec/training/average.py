"""A moving average of the weights and of BatchNorm's statistics, which is validated and saved in their place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(network: nn.Module, decay: float) -> Any:
    """The average of ``network``, not updated yet, or None if ``decay`` is 0. Its network is ``module``.

    The type is loose because the library does not say the type of ``module``.
    """
    return AveragedModel(network, use_buffers=True) if decay else None


def decay_at(decay: float, updates: int) -> float:
    """The decay of the update that follows ``updates`` others: 0, then at most (1 + updates) / (10 + updates).

    With a constant decay of 0.999, 55 % of the average after 600 steps would be the weights of step 1.
    """
    return min(decay, (1 + updates) / (10 + updates)) if updates else 0.0


@torch.no_grad()
def update(average: Any, network: nn.Module, decay: float) -> None:
    """Move ``average`` towards ``network``, in two calls for all tensors.

    The update of the library copies its counter to the GPU in every step, and the host waits for that copy.
    """
    pairs = list(zip(_tensors(average.module), _tensors(network), strict=True))
    means, counters = (
        [pair for pair in pairs if pair[0].is_floating_point() is real] for real in (True, False)
    )
    torch._foreach_lerp_([mean for mean, _ in means], [value for _, value in means], 1 - decay)
    if counters:  # BatchNorm's number of batches
        torch._foreach_copy_([counter for counter, _ in counters], [count for _, count in counters])
    average.n_averaged += 1


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
