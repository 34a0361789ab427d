"""The global batch on every rank, differentiably; and the few collectives around it.

Without a process group every function here is the identity, so that one process runs the same lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor


def grouped() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def world() -> tuple[int, int]:
    """(rank, world size); (0, 1) in one process."""
    return (dist.get_rank(), dist.get_world_size()) if grouped() else (0, 1)


def gather(embeddings: Tensor, sizes: Sequence[int]) -> Tensor:
    """All ranks' rows in rank order: [n, d] on each rank, ``sizes`` rows of each, to [b, d] on all.

    Scaling. Each rank's loss is the sum over its *local anchors*, divided by the all-reduced count of active
    triplets, times W (the world size). A rank's loss reaches the rows of other ranks through this gather, so backward
    *sums* what all ranks ask of a row (all-reduce, then the own slice). A rank's parameter gradient is then W times
    its rows' part of the global gradient, and DDP's mean over W ranks makes it the global gradient exactly. Averaging
    here, or leaving out W, gives 1/W of it; detaching the other ranks' rows gives a wrong direction (cosine .92).
    """
    if not grouped():
        return embeddings
    gathered: Tensor = _Gather.apply(embeddings, tuple(sizes))
    return gathered


class _Gather(torch.autograd.Function):
    """Rows padded to the largest share, because gloo refuses an uneven all-gather."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, sizes: tuple[int, ...]) -> Tensor:
        rank, _ = world()
        ctx.start, ctx.rows = sum(sizes[:rank]), sizes[rank]
        padded = embeddings.new_zeros(max(sizes), *embeddings.shape[1:])
        padded[: ctx.rows] = embeddings
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:rows] for part, rows in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.rows], None


def all_reduce(value: Tensor, op: Literal["sum", "min"] = "sum") -> Tensor:
    """The sum or least over ranks, without gradient."""
    value = value.detach().clone()
    if grouped():
        dist.all_reduce(value, dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MIN)
    return value


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order; for telemetry, not for the step."""
    if not grouped():
        return [value]
    values: list[Any] = [None] * world()[1]
    dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if not grouped():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
