"""What a run would do and hold, before it does anything: for people, and for choosing machines."""

from __future__ import annotations

from facerec.models.embedder import build
from facerec.training import state
from facerec.training.config import TrainConfig
from facerec.training.decoder import Recipe
from facerec.training.launches import kept_bytes
from facerec.training.loader import CACHE_BYTES, HELD, decoding
from facerec.training.plan import Plan, claimed_steps, make_plan
from facerec.training.processes import SLOTS
from facerec.training.validation import KEPT_BYTES

PROCESS_BYTES = 2**30
"""A worker with Ray and torch's CUDA build loaded."""
LOADER_PROCESS_BYTES = 64 * 2**20
"""A loader process without the faces that it makes: Python, NumPy and OpenCV, 22 MiB of them its own (measured)."""


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
    """The most that the first of ``workers`` holds, its loader processes included. With a GPU, weights and graph are in its
    memory, and the rest is the host's; with ``compile``, shared forwards take up to MEMORY_SHARE of the GPU in addition."""
    config, shape = plan.config, plan.shape
    network = build(config.model, config.seed)
    numbers = sum(parameter.numel() for parameter in network.parameters())
    copies = 5 + (config.ema > 0)  # weights, gradients and DDP's buckets of them, two moments
    cached = config.batch.cache and shape.groups > workers
    shared = 1 if config.shared_forward == "auto" else config.shared_forward
    own = shape.sizes(workers)[0]
    graphs = min(shared * shape.micro_batch, own) if cached else own
    faces = HELD * own + _in_flight(config.loader_process_count) * shape.micro_batch
    images = _image_bytes(config, faces, own)
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
    """Of ``faces`` that the loader holds; and of a share of ``augmented`` ones, where a GPU augments what is decoded.

    With a GPU the loader's faces take up to twice their size, because pinned memory comes in powers of two.
    """
    whole = Recipe(config.model.side, config.augment)
    if not config.augments_on_gpu:
        return 3 * faces * whole.side**2 * (1 + config.gpu)
    return 3 * (2 * faces * decoding(whole).side ** 2 + augmented * whole.side**2)


def _validation_bytes(config: TrainConfig, workers: int) -> int:
    """The decoded faces that the worker keeps for validation: none if they are more than KEPT_BYTES."""
    faces = 3 * config.model.side**2 * -(-config.validation.most // workers)
    return faces if faces <= KEPT_BYTES else 0


def _in_flight(processes: int) -> int:
    """Micro-batches that are made beside the shares: by loader processes, or by the loader's thread."""
    return SLOTS * processes or 1
