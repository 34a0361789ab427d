"""The moving average: little of a short run's first weights, and one call for all tensors without waiting for a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from facerec.training.average import decay_at, moving_average, update
from tests.support.dispatch import Dispatched


@pytest.mark.parametrize(("decay", "steps"), [(0.5, 30), (0.99, 200), (0.999, 600)])
def test_next_to_nothing_of_a_short_run_is_the_weights_of_step_1(decay: float, steps: int) -> None:
    """With a constant decay, 13 % after 200 steps at 0.99, and 55 % after 600 at 0.999."""
    network = nn.Linear(1, 1, bias=False)
    average = moving_average(network, decay)
    for step in range(steps):
        network.weight.data.fill_(float(step == 0))
        update(average, network, decay_at(decay, step))
    assert float(average.module.weight.detach()) < 1e-6
    assert int(average.n_averaged) == steps


def test_the_decay_rises_from_a_tenth_to_what_was_asked_for() -> None:
    assert [decay_at(0.999, updates) for updates in (0, 1, 2, 90)] == [0.0, 2 / 11, 3 / 12, 91 / 100]
    assert decay_at(0.999, 8989) < 0.999 == decay_at(0.999, 8991)


def test_an_update_is_three_calls_whatever_the_number_of_tensors_and_reads_none_of_them() -> None:
    network = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(5)))
    average = moving_average(network, 0.9)
    network(torch.ones(3, 4))
    with Dispatched() as calls:
        update(average, network, 0.0)
    assert (
        calls.launches == 3
    )  # floats, counters of BatchNorm, and the number of updates, which is on the CPU
    assert not calls.waits
    assert average.n_averaged.device.type == "cpu"
    for ours, theirs in zip(average.module.state_dict().values(), network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
