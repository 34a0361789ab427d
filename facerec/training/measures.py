"""What a run tells of itself: a line of metrics, a line to read, and a warning when it has collapsed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facerec.progress import duration
from facerec.training.distances import Distance
from facerec.training.gather import all_reduce, gather_objects
from facerec.training.losses import TripletSum
from facerec.training.step import Forward, nearest_negatives

COLLAPSE_LINES = 3
"""Lines in a row that look collapsed before the run says so: single ones happen in good runs."""


def measure(step: Forward, distance: Distance) -> dict[str, Any]:
    """Global numbers of one step, equal on all ranks. Collective: every rank must call it.

    ``active_fraction`` is of all that was looked at, mostly anchor-positive pairs: with semi-hard mining it falls as
    pairs run out of semi-hard negatives; with a soft loss nothing is ever inactive. Distances are in ``distance``, as [10 %, 50 %,
    90 %] of the mined ones. ``spread`` is the mean squared distance from the centre, 1 where directions are even and 0
    where all vectors are equal; ``effective_rank`` is the exponential of the entropy of the covariance's spectrum, at most d.
    """
    loss, active, looked_at = _totals(step.sums)
    d_ap, d_an = _quantiles(step.sums.d_ap), _quantiles(step.sums.d_an)
    spread, rank = spread_of(step.anchors.everyone)
    nearest = _of_all_ranks(nearest_negatives(step.anchors, distance))
    return {
        "loss": loss,
        "active": active,
        "active_fraction": active / max(looked_at, 1),
        "d_ap": d_ap,
        "d_an": d_an,
        "nearest_negative": float(nearest.median()) if len(nearest) else 0.0,
        "spread": spread,
        "effective_rank": rank,
    }


def spread_of(embeddings: Tensor) -> tuple[float, float]:
    """(spread, effective rank) of unit vectors [b, d]; (0, 1) where all are equal."""
    centred = embeddings.double() - embeddings.double().mean(0)
    spectrum = torch.linalg.eigvalsh(centred.T @ centred / len(centred)).clamp_min(0)
    total = float(spectrum.sum())
    if total < 1e-12:
        return 0.0, 1.0
    shares = spectrum / total
    return total, float(torch.exp(-(shares * shares.clamp_min(1e-30).log()).sum()))


@dataclass
class CollapseWatch:
    """Notices that all people are drawn into a few points.

    The mean distance looks healthy when they are several points; the loss and the nearest negative do not.
    """

    expected: float | None
    """The loss where all distances are equal; that of hard triplets is larger still when people lie at a few points. None
    for a loss of another library, where the distances alone tell."""
    margin: float
    """Another person nearer than a twentieth of it, or of 0.2, is no other person any more: a margin of 2 asks for more
    than people that are well apart early in a run have."""
    _lines: int = field(default=0, init=False)

    def warning(self, metrics: dict[str, Any]) -> str | None:
        """A line to print, each time the last three metrics lines all look collapsed."""
        expected = self.expected
        stuck = not expected or metrics["loss"] >= 0.98 * expected or metrics["active"] == 0
        near = metrics["nearest_negative"] < 0.05 * min(self.margin, 0.2)
        self._lines = self._lines + 1 if stuck and near else 0
        if self._lines < COLLAPSE_LINES:
            return None
        self._lines = 0
        at_collapse = f" (all equal: {expected:.4f})" if expected else ""
        return (
            f"train: WARNING: collapsed: loss {metrics['loss']:.4f}{at_collapse}, nearest other person at "
            f"{metrics['nearest_negative']:.4f}, effective rank {metrics['effective_rank']:.1f}; the embeddings no longer "
            "tell people apart. Start another --run with --mining.strategy semi_hard or a smaller --optimizer.lr"
        )


def progress_line(metrics: dict[str, Any], steps: int, eta_s: float) -> str:
    """One line for a job log."""
    return (
        f"train: step {metrics['step']}/{steps} loss {metrics['loss']:.4f} active {metrics['active_fraction']:.0%} "
        f"d_ap {metrics['d_ap'][1]:.2f} d_an {metrics['d_an'][1]:.2f} nearest {metrics['nearest_negative']:.2f} "
        f"{metrics['images_per_s']:.0f} images/s, {duration(eta_s)} left"
    )


def _totals(sums: TripletSum) -> tuple[float, int, int]:
    """Mean loss of the active triplets, their number, and how many were looked at; all global."""
    local = torch.stack([sums.total.double(), sums.active.double(), sums.looked_at.double()])
    total, active, looked_at = all_reduce(local).tolist()
    return total / max(active, 1), int(active), int(looked_at)


def _quantiles(local: Tensor) -> list[float]:
    """[10 %, 50 %, 90 %] over all ranks' values without NaN; zeros if there are none."""
    values = _of_all_ranks(local[local.isfinite()]).double().numpy()
    return (
        [float(value) for value in np.quantile(values, [0.1, 0.5, 0.9])] if len(values) else [0.0, 0.0, 0.0]
    )


def _of_all_ranks(local: Tensor) -> Tensor:
    """All ranks' values, in rank order, on the CPU."""
    parts: list[NDArray[np.float32]] = gather_objects(local.cpu().numpy())
    return torch.from_numpy(np.concatenate(parts))
