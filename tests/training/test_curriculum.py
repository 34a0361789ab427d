"""The curriculum: turns when the active pairs run out, at the same step whoever counts and whoever was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from facerec.publish import Dataset
from facerec.telemetry import read_json_lines
from facerec.training import curriculum, loop
from facerec.training.curriculum import WINDOW, Curriculum
from facerec.training.gather import from_first, world
from facerec.training.losses import TripletSum
from facerec.training.mining import MiningConfig
from facerec.training.plan import Plan, make_plan
from tests.support.ddp import run_ddp
from tests.training.test_loop import config_of, weights, work_until

CPU = torch.device("cpu")
CONFIG = MiningConfig(strategy="curriculum", hard_below=0.2)
STEPS = 10**6


def sums(active: int, pairs: int) -> TripletSum:
    return TripletSum(
        torch.zeros(()), torch.tensor(active), torch.tensor(pairs), torch.empty(0), torch.empty(0)
    )


def turned_at(counts: list[tuple[int, int]], killed_at: int | None = None) -> int | None:
    """The step that a curriculum turned after, perhaps saved and loaded on its way."""
    it = Curriculum(CONFIG, STEPS, CPU)
    for done, (active, pairs) in enumerate(counts, start=1):
        it.after(done, sums(active, pairs))
        if done == killed_at:
            state, it = it.state(), Curriculum(CONFIG, STEPS, CPU)
            it.load(state)
        if it.miner == "batch_hard":
            return done
    return None


def test_it_turns_after_the_first_window_with_too_few_active_pairs_and_never_back() -> None:
    counts = [(30, 100)] * WINDOW + [(10, 100)] * WINDOW + [(90, 100)] * WINDOW
    assert turned_at(counts) == 2 * WINDOW
    assert turned_at([(20, 100)] * 3 * WINDOW) is None, "at the share itself it stays"
    it = Curriculum(CONFIG, STEPS, CPU)
    for done, pair in enumerate(counts, start=1):
        it.after(done, sums(*pair))
    assert it.miner == "batch_hard"


def test_by_its_default_nothing_but_the_active_pairs_turns_it() -> None:
    it = Curriculum(CONFIG, 2 * WINDOW, CPU)
    for done in range(1, 2 * WINDOW + 1):
        it.after(done, sums(100, 100))
    assert it.miner == "semi_hard"


@pytest.mark.parametrize("killed_at", [1, WINDOW // 2, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW - 1])
def test_a_kill_moves_no_turn(killed_at: int) -> None:
    """The first window has 20.5 % as a whole: 41 % in one half and 0 in the other, whichever is lost or counted twice."""
    for halves in ((41, 0), (0, 41)):
        first = [(active, 100) for active in halves for _ in range(WINDOW // 2)]
        assert turned_at(first + [(0, 100)] * WINDOW, killed_at) == 2 * WINDOW
    nearly = [(active, 100) for active in (39, 0) for _ in range(WINDOW // 2)]
    assert turned_at(nearly, killed_at) == WINDOW, "19.5 %"


def test_it_turns_at_the_latest_step_whatever_is_active() -> None:
    for steps in (20, 3 * WINDOW):
        it = Curriculum(MiningConfig(strategy="curriculum", hard_after=0.5), steps, CPU)
        miners = []
        for done in range(1, steps + 1):
            miners.append(it.miner)
            it.after(done, sums(100, 100))
        assert miners == ["semi_hard"] * (steps // 2) + ["batch_hard"] * (steps // 2)


def test_the_latest_step_follows_the_total_of_a_run_that_is_given_more_steps() -> None:
    config = MiningConfig(strategy="curriculum", hard_after=0.5)
    it = Curriculum(config, 20, CPU)
    for done in range(1, 9):
        it.after(done, sums(100, 100))
    saved, it = it.state(), Curriculum(config, 40, CPU)
    it.load(saved)
    miners = []
    for done in range(9, 22):
        miners.append(it.miner)
        it.after(done, sums(100, 100))
    assert miners == ["semi_hard"] * 12 + ["batch_hard"]


def test_other_strategies_have_one_miner() -> None:
    it = Curriculum(MiningConfig(strategy="seed"), STEPS, CPU)
    it.after(WINDOW, sums(0, 100))
    assert it.miner == "seed"


SPLIT = [((0, 0), (1, 0)), ((0, 0), (0, 1)), ((0, 1), (0, 0)), ((1, 0), (0, 0))]
"""Which rank counts active pairs, and in which half of the window: no half and no rank may be lost or counted twice."""


def _miners() -> list[str]:
    return [
        _miner_after_a_window(where, active, reload)
        for active in (82, 78)
        for where in SPLIT
        for reload in (False, True)
    ]


def _miner_after_a_window(where: tuple[tuple[int, int], ...], active: int, reload: bool) -> str:
    """With a checkpoint after half of it, perhaps resumed from."""
    it = Curriculum(CONFIG, STEPS, CPU)
    for done in range(1, WINDOW + 1):
        it.after(done, sums(active * where[world()[0]][done > WINDOW // 2], 100))
        if done == WINDOW // 2:
            state = it.state()
            if reload:
                it = Curriculum(CONFIG, STEPS, CPU)
                it.load(from_first(state))
    return it.miner


def test_ranks_decide_by_the_counts_of_all() -> None:
    """Of two ranks and two halves one counts 82 or 78 active pairs of a hundred: 20.5 % in all, or 19.5 %."""
    assert run_ddp(2, _miners) == [["semi_hard"] * 8 + ["batch_hard"] * 8] * 2


def _work(plan: Plan, until: int | None = None) -> None:
    curriculum.WINDOW = 3  # type: ignore[misc]
    loop.work(plan) if until is None else work_until(plan, until)


def test_a_run_that_turned_resumes_bit_identical(crowd: Dataset, tmp_path: Path) -> None:
    changes = {"mining": MiningConfig(strategy="curriculum", hard_below=1.0), "log_every": 1}
    whole, *killed = (make_plan(config_of(crowd, tmp_path / name, **changes)) for name in ("whole", "3", "5"))
    run_ddp(2, _work, whole)
    miners = [line["miner"] for line in read_json_lines(str(tmp_path / "whole" / "metrics.jsonl"))]
    assert miners == ["semi_hard"] * 3 + ["batch_hard"] * 3
    for plan, until in zip(killed, (3, 5), strict=True):
        run_ddp(2, _work, plan, until)
        run_ddp(2, _work, plan)
        assert weights(tmp_path / str(until)) == weights(tmp_path / "whole")
