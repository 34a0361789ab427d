"""From semi-hard to hard triplets, when the semi-hard ones run out.

Semi-hard mining stops teaching once most pairs have no negative within the margin; batch-hard before then draws all
faces into one point. So what decides is the share of pairs that are still active, counted over a window of steps; a
margin as wide as the original recipe's 2 keeps nearly all pairs active for good, so there is a latest step too. The
counts are integers and stay on the device; they are looked at, and reduced over the ranks, once a window, once a
checkpoint and at the latest step, so that the turn falls on the same step at every number of workers and after every kill.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from facerec.training.gather import all_reduce, world
from facerec.training.losses import TripletSum
from facerec.training.mining import Miner, MiningConfig

WINDOW = 50
"""Steps that are counted together: one batch says little."""


class Curriculum:
    """The miner of each step, and the counts that decide it."""

    def __init__(self, config: MiningConfig, steps: int, device: torch.device) -> None:
        """``steps`` of the whole run."""
        self._config = config
        self._latest = config.hard_after * steps if config.hard_after < 1 else math.inf
        self._turned = False
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)

    @property
    def miner(self) -> Miner:
        """The miner of the next step."""
        if self._config.strategy != "curriculum":
            return self._config.strategy
        return "batch_hard" if self._turned else "semi_hard"

    def after(self, done: int, sums: TripletSum) -> None:
        """Count the step that makes ``done``. Collective at the end of each window, and at the latest step."""
        if self._config.strategy != "curriculum" or self._turned:
            return
        self._counts += torch.stack([sums.active, sums.looked_at])
        if done % WINDOW and done < self._latest:
            return
        active, pairs = self._take().tolist()
        self._turned = active < self._config.hard_below * pairs or done >= self._latest
        if self._turned and world()[0] == 0:
            print(
                f"train: step {done}: {active / max(pairs, 1):.1%} of the pairs have a semi-hard negative: "
                "batch_hard from here on",
                flush=True,
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps. Collective: rank 0 goes on with everybody's counts."""
        counts = self._take()
        if world()[0] == 0:
            self._counts += counts
        return {"turned": self._turned, "counts": counts.cpu()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's."""
        self._turned = state["turned"]
        if world()[0] == 0:
            self._counts += state["counts"].to(self._counts.device)

    def _take(self) -> Tensor:
        """Both counts of all ranks, which begin anew."""
        counts = all_reduce(self._counts)
        self._counts.zero_()
        return counts
