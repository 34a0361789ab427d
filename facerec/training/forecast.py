"""What a run would do and hold, before it does anything: for people, and for choosing machines."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from facerec.models.embedder import build
from facerec.training import state
from facerec.training.config import TrainConfig
from facerec.training.loader import CACHE_BYTES, HELD
from facerec.training.plan import Plan, claimed_steps, make_plan
from facerec.training.step import MicroBatches

PROCESS_BYTES = 2**30
"""A worker with Ray and torch's CUDA build loaded."""
TRIED = 2
"""Faces that are embedded to see what a graph keeps: the fewest that BatchNorm takes."""


def forecast(config: TrainConfig) -> dict[str, object]:
    """What ``train`` would do, for people; raises what it would, and writes nothing."""
    plan = make_plan(config)
    claimed_steps(plan.config)
    least = max(1, config.workers[0])
    shape, split = plan.shape, plan.split
    done = state.newest_step(plan.uri("checkpoints"))
    return {
        "faces": f"{int(plan.index().faces.sum()):,} in {config.faces}, generation {plan.dataset.generation}",
        "identities": f"{len(plan.identities):,} trained on, {len(split.validation):,} validation, {len(split.unseen):,} unseen",
        "batches": f"{shape.p} x {shape.k} faces in {shape.groups} micro-batches of {shape.micro_batch}, {plan.precision}",
        "steps": f"{config.steps - done:,} of {config.steps:,}, a checkpoint every {config.checkpoint_every}",
        "workers": _workers(plan),
        "memory": f"about {worker_bytes(plan, least) / 2**30:.1f} GiB a worker, where they are {least}",
        "result": f"{config.run}, {'going on after step ' + str(done) if done else 'begun anew'}",
    }


def _workers(plan: Plan) -> str:
    least, most = plan.workers
    if not most:
        return "this process, without Ray"
    number = f"{most}" if least == most else f"{least} to {most}"
    return f"{number}, one {'GPU and one core' if plan.config.gpu else 'core'} each"


def worker_bytes(plan: Plan, workers: int) -> int:
    """The most that the first of so many workers holds; on a GPU, all of it but the process and the cache is there."""
    config, shape = plan.config, plan.shape
    network = build(config.model, config.seed)
    numbers = sum(parameter.numel() for parameter in network.parameters())
    copies = 5 + (config.ema > 0)  # weights, gradients and DDP's buckets of them, two moments
    cached = config.batch.cache and shape.groups > workers
    graphs = shape.micro_batch if cached else shape.sizes(workers)[0]
    images = HELD * shape.sizes(workers)[0] * 3 * config.model.side**2
    graph = graphs * kept_bytes(network, config.model.side, plan.precision)
    return PROCESS_BYTES + CACHE_BYTES + 4 * numbers * copies + images + graph


def kept_bytes(network: nn.Module, side: int, precision: str) -> int:
    """Bytes a face that the graph of one forward keeps for the backward, seen on TRIED blank faces."""
    model = MicroBatches(network.train().to(memory_format=torch.channels_last), 1, precision)
    kept: dict[int, int] = {}
    known = {tensor.data_ptr() for tensor in chain(network.parameters(), network.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in known:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    faces = torch.zeros(TRIED, side, side, 3, dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embedded = model(faces, seeds=[0])  # held until all is counted, so that no address is used twice
        total = sum(kept.values())
    del embedded
    return total // TRIED
