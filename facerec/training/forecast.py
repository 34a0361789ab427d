"""What a run would do and hold, before it does anything: for people, and for choosing machines."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from facerec.models.embedder import build
from facerec.training import state
from facerec.training.config import TrainConfig
from facerec.training.decoder import Recipe
from facerec.training.launches import MOST_FACES
from facerec.training.loader import CACHE_BYTES, HELD, decoding
from facerec.training.plan import Plan, claimed_steps, make_plan
from facerec.training.processes import SLOTS
from facerec.training.step import MicroBatches
from facerec.training.validation import KEPT_BYTES

PROCESS_BYTES = 2**30
"""A worker with Ray and torch's CUDA build loaded."""
MEMORY_SHARE = 0.4
"""Of a GPU's free memory, for the graph of a forward: the rest is for the backward's own, the loss and fragmentation."""
LOADER_PROCESS_BYTES = 64 * 2**20
"""A loader process without the faces that it makes: Python, NumPy and OpenCV, 22 MiB of them its own (measured)."""
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
    loaders = plan.config.loader_process_count
    beside = f", with {loaders} loader processes" if loaders else ""
    return f"{number}, one {'GPU' if plan.config.gpu else 'core'} each{beside}"


def worker_bytes(plan: Plan, workers: int) -> int:
    """The most that the first of so many workers holds, its loader processes included. With a GPU, weights and graph are
    in its memory, and the rest is the host's."""
    config, shape = plan.config, plan.shape
    network = build(config.model, config.seed)
    numbers = sum(parameter.numel() for parameter in network.parameters())
    copies = 5 + (config.ema > 0)  # weights, gradients and DDP's buckets of them, two moments
    cached = config.batch.cache and shape.groups > workers
    shared = 1 if config.shared_forward == "auto" else config.shared_forward
    graphs = min(shared * shape.micro_batch, shape.sizes(workers)[0]) if cached else shape.sizes(workers)[0]
    faces = HELD * shape.sizes(workers)[0] + _in_flight(config.loader_process_count) * shape.micro_batch
    images = _image_bytes(config, faces, shape.sizes(workers)[0])
    graph = graphs * kept_bytes(network, config.model.side, plan.precision)
    return (
        PROCESS_BYTES
        + CACHE_BYTES
        + 4 * numbers * copies
        + images
        + config.loader_process_count * LOADER_PROCESS_BYTES
        + graph
        + _validation_bytes(config, workers)
    )


def _image_bytes(config: TrainConfig, faces: int, augmented: int) -> int:
    """Of ``faces`` that the loader holds; and of a share of ``augmented`` ones, where a GPU augments what is decoded."""
    whole = Recipe(config.model.side, config.augment)
    if not config.augments_on_gpu:
        return 3 * faces * whole.side**2
    return 3 * (faces * decoding(whole).side ** 2 + augmented * whole.side**2)


def _validation_bytes(config: TrainConfig, workers: int) -> int:
    """The most decoded faces that the worker keeps for validation."""
    return min(KEPT_BYTES, 3 * config.model.side**2 * -(-config.validation.most // workers))


def shared_micro_batches(plan: Plan, device: torch.device, own: int) -> int:
    """Micro-batches at most in one forward, of the ``own`` of a rank: ``--shared_forward``, or what fits the GPU's memory."""
    config = plan.config
    if config.shared_forward != "auto":
        return min(config.shared_forward, own)
    if device.type != "cuda" or not config.compile:
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    network = build(config.model, config.seed)
    return that_fit(free, kept_bytes(network, config.model.side, plan.precision), plan.shape.micro_batch, own)


def that_fit(free: int, per_face: int, micro_batch: int, own: int) -> int:
    """Micro-batches whose graph takes a share MEMORY_SHARE of the ``free`` bytes, and at most MOST_FACES faces; 1 or more."""
    faces = min(MOST_FACES, int(free * MEMORY_SHARE) // max(1, per_face))
    return max(1, min(faces // micro_batch, own))


def _in_flight(processes: int) -> int:
    """Micro-batches that are made beside the shares: by loader processes, or by the loader's thread."""
    return SLOTS * processes or 1


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
