"""A step never makes the host wait for a GPU: counted by kind of operation, so that it runs on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facerec.publish import Dataset
from facerec.training import distances, loop
from facerec.training.config import TrainConfig
from facerec.training.fit import train
from facerec.training.mining import Miner, MiningConfig, Strategy
from facerec.training.step import MicroBatches, descend
from tests.support.dispatch import Dispatched
from tests.training.test_gradient import small_network
from tests.training.test_loop import config_of
from tests.training.test_mining import DENSE, MINERS

PEOPLE, GROUPS = 6, 4


def waits(miner: Miner, per_person: int, cache: bool, shares: int = 1) -> list[str]:
    """Operations of one step that would wait."""
    b = PEOPLE * per_person
    images = torch.randn(b, 3, 6, 6, dtype=torch.float64)
    model = MicroBatches(small_network(norm=True), GROUPS)
    with Dispatched() as counted:
        descend(
            model,
            images,
            np.arange(b) // per_person,
            np.arange(b),
            seeds=range(GROUPS),
            sizes=[b],
            miner=miner,
            mining=MiningConfig(margin=2.0, soft=3.0 if miner == "n_pair" else 0.0, shares=shares),
            cache=cache,
        )
    return sorted(counted.waits)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("per_person", [4, 12])
@pytest.mark.parametrize("miner", [*MINERS, *DENSE])
def test_a_step_does_not_wait(
    miner: Miner, per_person: int, cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block and in several, with positives searched for (4 faces) and sorted (12)."""
    assert waits(miner, per_person, cache) == []
    monkeypatch.setattr(distances, "BLOCK_DISTANCES", 5 * PEOPLE * per_person)
    assert waits(miner, per_person, cache) == []


def test_a_step_that_is_mined_in_shares_does_not_wait() -> None:
    assert waits("semi_hard", 4, cache=False, shares=3) == []


@pytest.mark.parametrize("strategy", ["semi_hard", "curriculum"])
@pytest.mark.parametrize("augments_on_gpu", [False, True])
def test_a_whole_step_of_a_run_does_not_wait_between_two_log_lines(
    faces: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Strategy, augments_on_gpu: bool
) -> None:
    """With augmentation on the device, the optimizer, the moving average and the check for values that are not finite."""
    monkeypatch.setattr(TrainConfig, "augments_on_gpu", augments_on_gpu)
    step, found = loop.Worker._step, dict[int, list[str]]()

    def counted(worker: loop.Worker, model: Any, batch: Any, journal: Any) -> None:
        with Dispatched() as dispatched:
            step(worker, model, batch, journal)
        found[batch.step + 1] = sorted(dispatched.waits)

    monkeypatch.setattr(loop.Worker, "_step", counted)
    mining = MiningConfig(strategy=strategy, margin=2.0)
    train(config_of(faces, tmp_path / "run", log_every=100, checkpoint_every=100, ema=0.9, mining=mining))
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert found[1]  # it logs: the count is alive
    assert all(found[number] == [] for number in (2, 3, 4, 5))


def test_a_wait_is_seen() -> None:
    with Dispatched() as counted:
        numbers = torch.arange(4.0)
        numbers[numbers > 1]
        numbers.new_tensor(3.0)
        float(numbers.sum())
    assert [wait.partition(" in ")[0] for wait in sorted(counted.waits)] == [
        "_local_scalar_dense", "index.Tensor", "lift_fresh",
    ]  # fmt: skip
