"""One rank's training, from the last checkpoint to the end. Ranks differ in their share of the faces; rank 0 writes."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import cv2
import torch
from torch import Tensor, nn

from facerec import seeding
from facerec.errors import ConfigError
from facerec.models.embedder import Embedder, build
from facerec.models.format import is_model, load_model, save_model
from facerec.models.images import normalize
from facerec.telemetry import read_json_lines
from facerec.training import state
from facerec.training.augment_batch import augmented
from facerec.training.average import decay_at, moving_average, update
from facerec.training.batchnorm import calibrate
from facerec.training.clock import Clock
from facerec.training.config import OptimizerConfig, TrainConfig
from facerec.training.curriculum import Curriculum
from facerec.training.gather import all_reduce, from_first, world
from facerec.training.journal import Journal
from facerec.training.launches import kept_bytes, that_fit
from facerec.training.loader import FaceStore, Loader, Share
from facerec.training.notice import Notice
from facerec.training.plan import Plan
from facerec.training.profiling import profiled
from facerec.training.step import Forward, MicroBatches, descend
from facerec.training.utilisation import flops_per_face
from facerec.training.validation import Validation
from facerec.training.verdict import verdict

CALIBRATION_FACES = 512
"""Faces, or a few more, whose statistics the untrained network's BatchNorm gets."""

NEVER = 2**62
"""As the first step that went wrong: none has."""


def work(plan: Plan) -> None:
    """What each rank does."""
    with _torch_settings(plan.config), warnings.catch_warnings():
        # Depthwise kernels have two layouts in memory that are the same; DDP copies between them.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        Worker(plan).run()


class Worker:
    """One rank: its network, its share of every batch, and the state that a checkpoint holds."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.config = plan, plan.config
        self.rank, self.workers = world()
        self.device = _device(self.config.gpu, self.workers)
        self.network = _network(self.config).to(self.device).to(memory_format=torch.channels_last)
        self.average = moving_average(self.network, self.config.ema)
        self.optimizer = _optimizer(self.network, self.config.optimizer)
        self.curriculum = Curriculum(self.config.mining, self.config.steps, self.device)
        self.library = self.config.library.build() if self.config.library.loss else None
        self.groups = plan.shape.share(self.workers, self.rank)
        self.sizes = plan.shape.sizes(self.workers)
        self.chain = ""
        self.first_bad = torch.full((), NEVER, device=self.device)
        self.clock = Clock(self.device)
        index, side = plan.index(), self.config.model.side
        store = FaceStore(plan.dataset, index)
        self.loader = Loader(
            store=store,
            schedule=plan.schedule(index),
            side=side,
            augment=self.config.augment,
            seed=self.config.seed,
            processes=self.config.loader_process_count,
            pin=self.config.gpu,
            decode_only=self.config.augments_on_gpu,
        )
        self.kept_back = bool(plan.split.validation)
        scored = plan.split.validation or plan.identities
        self.validation = Validation(store, index, scored, self.config.validation, side)

    @property
    def trained(self) -> Embedder:
        """The network as it is validated and saved: its moving average, where there is one."""
        trained: Embedder = self.network if self.average is None else self.average.module
        return trained

    def run(self) -> None:
        """Go on from the last checkpoint, train to the end, and save the model."""
        start, elapsed = self._resume()
        self.notice = Notice(self.config.workers != (0, 0), start)
        self.untrained = self._keep_untrained() if start == 0 else {}
        flops = flops_per_face(self.network, self.config.model.side) if self.rank == 0 else None
        model = _distributed(self._micro_batches())
        journal = Journal(self.plan, self.clock, start, elapsed, flops)
        profile = profiled(self.plan, start, self.rank)
        shares = self.loader.ahead(range(start, self.config.steps), self.groups)
        with contextlib.closing(shares), contextlib.closing(journal), profile as step_done:
            while batch := self._next(shares):
                self._step(model, batch, journal)
                step_done()
        if self.rank == 0:
            self._save_best()
            self._save_model("model", self.trained, self.config.steps)
            print(f"train: finished, {self.config.steps} steps: {self.plan.uri('model')}", flush=True)
            lines = read_json_lines(self.plan.uri("metrics.jsonl"))
            print(
                f"train: verdict: {verdict(lines, self.plan.loss_at_collapse, self.config.mining.margin)}",
                flush=True,
            )

    def _micro_batches(self) -> MicroBatches:
        config = self.config
        return MicroBatches(
            self.network,
            self.plan.shape.groups,
            self.plan.precision,
            shared=self._shared(),
            backend="inductor" if config.compile else None,
            cuda_graphs=config.cuda_graphs,
        )

    def _shared(self) -> int:
        """Micro-batches at most in one forward: ``--shared_forward``, or what fits the GPU's memory."""
        config = self.config
        if config.shared_forward != "auto":
            return config.shared_forward
        if self.device.type != "cuda" or not config.compile:
            return 1
        per_face = kept_bytes(build(config.model, config.seed), config.model.side, self.plan.precision)
        free, _ = torch.cuda.mem_get_info(self.device)
        return that_fit(free, per_face, self.plan.shape.micro_batch, len(self.groups))

    def _next(self, shares: Iterator[Share]) -> Share | None:
        with self.clock("wait"):
            return next(shares, None)

    def _step(self, model: nn.Module, batch: Share, journal: Journal) -> None:
        config, done = self.config, batch.step + 1
        self.optimizer.zero_grad(set_to_none=not config.cuda_graphs)
        result = self._descend(model, batch)
        logs = done % config.log_every == 0 or done in (1, config.steps)
        extra: dict[str, Any] = {"gradient_norm": _gradient_norm(self.network)} if logs else {}
        with self.clock("optimizer"):
            self._update(batch.step)
        self.chain = _link(self.chain, batch)
        self._watch(done, result)
        scheduled = done % config.checkpoint_every == 0 or done == config.steps
        saves = self.notice.come(done) or scheduled
        if logs or saves:
            self._stop_if_bad(done, saves)
        scores = self._validate(self.trained) if scheduled else {}
        if logs or scores:
            extra |= {"lr": config.optimizer.lr_at(batch.step, config.steps), "batches": self.chain}
            extra |= {"miner": config.library.loss or self.curriculum.miner}
            extra |= {"epoch": self.loader.schedule.epoch(batch.step)}
            extra |= {"validation" if self.kept_back else "training_people": scores} if scores else {}
            extra |= {"untrained": self.untrained} if self.untrained and done == 1 else {}
            journal.write(done, result, extra)
        self.curriculum.after(done, result.sums)
        if saves:
            score = scores.get("nearest_neighbour") if self.kept_back else None
            self._save_state(done, journal.elapsed_s, score)

    def _descend(self, model: nn.Module, batch: Share) -> Forward:
        config = self.config
        with self.clock("forward"):
            images = self._images(batch)
        return descend(
            model.train(),
            images,
            batch.labels,
            batch.faces,
            seeds=[seeding.derive(config.seed, "dropout", batch.step, group) for group in self.groups],
            sizes=self.sizes,
            miner=self.curriculum.miner,
            mining=config.mining,
            library=self.library,
            cache=config.batch.cache and self.plan.shape.groups > self.workers,  # the same on all ranks
            clock=self.clock,
        )

    def _images(self, batch: Share) -> Tensor:
        """What the network sees, uint8 [n, s, s, 3]: on a GPU it is augmented there, each micro-batch by itself."""
        config = self.config
        if batch.drawn is None or config.augment is None:
            return batch.images
        return augmented(
            batch.images,
            batch.drawn,
            config.model.side,
            config.augment,
            rows=self.plan.shape.micro_batch,
            device=self.device,
            compiled=config.compile,
        )

    def _update(self, step: int) -> None:
        lr = self.config.optimizer.lr_at(step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.average is not None:
            update(self.average, self.network, decay_at(self.config.ema, step))

    def _watch(self, done: int, result: Forward) -> None:
        """Keep the first step that was not finite, on the device: looking at it would wait for the GPU."""
        self._note(result.loss.isfinite() & result.anchors.everyone.isfinite().all(), done)

    def _note(self, good: Tensor, done: int) -> None:
        self.first_bad = torch.where(good, self.first_bad, self.first_bad.clamp_max(done))

    def _stop_if_bad(self, done: int, saves: bool) -> None:
        """Stop on all ranks, before anything of it is saved; a bad gradient shows in the weights alone. Collective."""
        if saves:
            kept = self.network.state_dict().values()
            self._note(torch.stack([tensor.isfinite().all() for tensor in kept]).all(), done)
        first = int(all_reduce(self.first_bad, "min"))
        if first < NEVER:
            safe = state.newest_step(self.plan.uri("checkpoints"))
            raise ConfigError(
                f"loss, embeddings or weights are not numbers since step {first} (seen at step {done}); the checkpoint after "
                f"step {safe} stands; start another --run with a smaller --optimizer.lr"
            )

    def _validate(self, network: Embedder) -> dict[str, float]:
        return self.validation.score(network, self.device, self.plan.precision) if self.validation else {}

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _resume(self) -> tuple[int, float]:
        """(steps done, seconds trained). Rank 0 decides and sends: storage may show the others something older."""
        folder = self.plan.uri("checkpoints")
        found = from_first(state.latest(folder, self.config.model) if self.rank == 0 else None)
        if found is None:
            return 0, 0.0
        content = found.content()
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        self.chain = content["chain"]
        self.curriculum.load(content["curriculum"])
        if self.rank == 0:
            print(f"train: going on after step {found.step}", flush=True)
        return found.step, float(content["elapsed_s"])

    def _save_state(self, done: int, elapsed_s: float, score: float | None) -> None:
        curriculum = self.curriculum.state()  # collective
        if self.rank != 0:
            return
        content = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "elapsed_s": elapsed_s,
            "chain": self.chain,
            "curriculum": curriculum,
        }
        folder = self.plan.uri("checkpoints")
        config, fence = self.config, self.plan.fence
        state.save(folder, done, content, config.model, score=score, keep=config.keep, fence=fence)

    def _save_best(self) -> None:
        """``run/best/``: the checkpoint that the validation identities chose."""
        found = state.best(self.plan.uri("checkpoints"), self.config.model)
        if found is None:
            return
        network, content = deepcopy(self.network), found.content()
        average = moving_average(network, self.config.ema)
        if average is None:
            network.load_state_dict(content["network"])
        else:
            average.load_state_dict(content["average"])
        self._save_model("best", network if average is None else average.module, found.step)
        print(
            f"train: best by validation: step {found.step}, nearest neighbour {found.score:.3f}", flush=True
        )

    def _keep_untrained(self) -> dict[str, float]:
        """Save the network at step 0, which is the control of every learning claim, and give its scores.

        Its BatchNorm statistics are those of some training faces. The faces that are scored are the same as at the
        checkpoints. Collective: all ranks have the same weights, and each scores a part of the faces.
        """
        missing = self.rank == 0 and not is_model(self.plan.uri("untrained"))
        if not missing and not self.validation:
            return {}
        network = deepcopy(self.network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive(self.config.seed, "calibration"))
            calibrate(network, self._calibration())
        if missing:
            self._save_model("untrained", network, 0)
        return self._validate(network)

    def _calibration(self) -> Iterator[Tensor]:
        shape = self.plan.shape
        groups = range(min(shape.groups, -(-CALIBRATION_FACES // shape.micro_batch)))
        steps = -(-CALIBRATION_FACES // (len(groups) * shape.micro_batch))
        for step in range(min(steps, self.config.steps)):
            images = self._images(self.loader.load(step, groups))
            yield from (normalize(self._here(part)) for part in torch.split(images, shape.micro_batch))

    def _save_model(self, name: str, network: Embedder, steps: int) -> None:
        about = {**self.plan.about, "steps": steps}
        contract, write = self.plan.dataset.preprocessing, self.plan.write
        save_model(self.plan.uri(name), network, self.config.model, contract, about, write)


def _network(config: TrainConfig) -> Embedder:
    if config.init is None:
        return build(config.model, config.seed)
    return load_model(config.init)[0].train()


def _optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.lr,
        fused=True,
    )


def _gradient_norm(network: nn.Module) -> float:
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def _link(chain: str, batch: Share) -> str:
    """A hash of all global batches so far: two runs whose chains are equal were shown the same faces in each step."""
    digest = hashlib.blake2b(chain.encode(), digest_size=8)
    digest.update(batch.faces.astype("<i8").tobytes())
    return digest.hexdigest()


def _distributed(model: MicroBatches) -> nn.Module:
    """DDP where there are several ranks.

    Buffers are not synchronised in forward: the running statistics are equal on all ranks already. Looking for unused
    parameters keeps the bucket layout fixed; rebuilt after the first step, it made a resumed run differ at W = 3. It takes
    less than 1 % of a step of 16 micro-batches. ``static_graph`` rebuilds the layout too, and fails within ``no_sync``,
    which gradient caching needs.
    """
    if world()[1] == 1:
        return model
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(
        model, forward_sync_buffers=False, find_unused_parameters=True
    )
    return wrapped


def _device(gpu: bool, workers: int) -> torch.device:
    if not gpu:
        return torch.device("cpu")
    if workers == 1:
        return torch.device("cuda", torch.cuda.current_device())
    from ray.train.torch import get_device

    device: torch.device = get_device()
    return device


@contextlib.contextmanager
def _torch_settings(config: TrainConfig) -> Iterator[None]:
    """Torch's and OpenCV's settings for the length of a run: several workers share a machine.

    cudnn tries its kernels once for each shape; a run has few shapes. A compiler would cut a forward at the buckets of
    DDP, so that gradients are sent during the backward; uncut, it has one graph.
    """
    before = torch.get_num_threads(), cv2.getNumThreads(), torch.backends.cudnn.benchmark
    uncut = torch._dynamo.config.patch(optimize_ddp=False) if config.compile else contextlib.nullcontext()
    torch.set_num_threads(config.threads)
    cv2.setNumThreads(1)  # decoding has a thread of its own
    torch.backends.cudnn.benchmark = config.gpu
    try:
        with uncut:
            yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
        torch.backends.cudnn.benchmark = before[2]
