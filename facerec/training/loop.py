"""Training, top-down: check everything, then the same worker on every rank, in this process or under Ray Train."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import cv2
import torch
from torch import Tensor, nn

from facerec import publish, seeding
from facerec.errors import ConfigError, FacerecError
from facerec.models.embedder import Embedder, build
from facerec.models.format import is_model, load_model, save_model
from facerec.telemetry import JsonLines
from facerec.training import state
from facerec.training.batchnorm import calibrate
from facerec.training.config import OptimizerConfig, TrainConfig
from facerec.training.gather import from_first, world
from facerec.training.loader import FaceStore, Loader, Share
from facerec.training.measures import CollapseWatch, measure, progress_line
from facerec.training.plan import Plan, make_plan, record
from facerec.training.step import Forward, MicroBatches, descend

RESTARTS = 3
"""Times that Ray Train starts the workers again after a failure, before it gives up."""

CALIBRATION_FACES = 512
"""Faces whose statistics the untrained network's BatchNorm gets."""


def train(config: TrainConfig) -> None:
    """Train, or go on training, until ``run/model/`` stands; a finished run returns at once.

    Needs an initialised Ray unless ``num_workers`` is 0. Raises FacerecError, with one line, before any work where
    something does not fit.
    """
    plan = make_plan(config)
    with publish.exclusive(plan.uri(), "--run"):
        record(plan)
        if is_model(plan.uri("model")):
            print(
                f"train: {config.run} is finished already ({config.steps} steps): {plan.uri('model')}",
                flush=True,
            )
            return
        print(
            f"train: {len(plan.identities)} identities to train on, {len(plan.split.unseen)} unseen; "
            f"batches of {plan.shape.p} x {plan.shape.k} faces in {plan.shape.groups} micro-batches",
            flush=True,
        )
        if config.num_workers == 0:
            work(plan)
        else:
            _fit(plan)


def _fit(plan: Plan) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    config = plan.config
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"plan": plan},
        scaling_config=ray.train.ScalingConfig(num_workers=config.num_workers, use_gpu=config.gpu),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=plan.uri("ray"),
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
        ),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        raise _users_fault(error.worker_failures) or error from None


def _ray_worker(loop_config: dict[str, Any]) -> None:
    import ray.train

    plan: Plan = loop_config["plan"]
    work(plan)
    ray.train.report({"steps": plan.config.steps})


def _users_fault(failures: dict[int, Exception]) -> FacerecError | None:
    """The FacerecError among the workers' failures, out of Ray's wrapping."""
    for failure in failures.values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, FacerecError):
            return cause
    return None


def work(plan: Plan) -> None:
    """What each rank does; ranks differ in their share of the faces, and rank 0 writes."""
    with _threads(plan.config.threads), warnings.catch_warnings():
        # Depthwise kernels have two layouts in memory that are the same; DDP copies between them.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        Worker(plan).run()


class Worker:
    """One rank: its network, its share of every batch, and the state that a checkpoint holds."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.config = plan, plan.config
        self.rank, self.workers = world()
        self.device = _device(self.config.gpu, self.workers)
        self.network = _network(self.config).to(self.device)
        self.optimizer = _optimizer(self.network, self.config.optimizer)
        self.groups = plan.shape.share(self.workers, self.rank)
        self.sizes = plan.shape.sizes(self.workers)
        index = plan.index()
        self.loader = Loader(
            store=FaceStore(plan.dataset, index),
            schedule=plan.schedule(index),
            side=self.config.model.side,
            augment=self.config.augment,
            seed=self.config.seed,
        )

    def run(self) -> None:
        """Go on from the last checkpoint, train to the end, and save the model."""
        start, elapsed = self._resume()
        if start == 0:
            self._save_untrained()
        model = _distributed(MicroBatches(self.network, self.plan.shape.groups))
        journal = _Journal(self.plan, start, elapsed)
        with contextlib.closing(self.loader.ahead(range(start, self.config.steps), self.groups)) as shares:
            for batch in shares:
                self._step(model, batch, journal)
        if self.rank == 0:
            self._save_model("model", self.network, self.config.steps)
            print(f"train: finished, {self.config.steps} steps: {self.plan.uri('model')}", flush=True)

    def _step(self, model: nn.Module, batch: Share, journal: _Journal) -> None:
        config, done = self.config, batch.step + 1
        lr = config.optimizer.lr_at(batch.step, config.steps)
        labels, faces = batch.labels.to(self.device), batch.faces.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        result = descend(
            model.train(),
            batch.images.to(self.device),
            labels,
            faces,
            seeds=[seeding.derive(config.seed, "dropout", batch.step, group) for group in self.groups],
            sizes=self.sizes,
            miner=config.mining.miner(batch.step, config.steps),
            mining=config.mining,
            cache=config.batch.cache and self.plan.shape.groups > self.workers,  # the same on all ranks
        )
        if not result.everyone.isfinite().all():  # of the global batch, so all ranks agree to stop
            raise ConfigError(f"embeddings are not numbers at step {done}; choose a smaller --optimizer.lr")
        self.optimizer.step()
        if done % config.log_every == 0 or done in (1, config.steps):
            journal.write(done, result, labels, faces, lr)
        if self.rank == 0 and (done % config.checkpoint_every == 0 or done == config.steps):
            self._save_state(done, journal.elapsed_s)

    def _resume(self) -> tuple[int, float]:
        """(steps done, seconds trained). Rank 0 decides and sends: storage may show the others something older."""
        folder = self.plan.uri("checkpoints")
        found = from_first(state.latest(folder, self.config.model) if self.rank == 0 else None)
        if found is None:
            return 0, 0.0
        elapsed = state.restore(found, self.network, self.optimizer)
        if self.rank == 0:
            print(f"train: going on after step {found.step}", flush=True)
        return found.step, elapsed

    def _save_state(self, done: int, elapsed_s: float) -> None:
        config = self.config
        folder = self.plan.uri("checkpoints")
        state.save(
            folder, done, self.network, self.optimizer, config.model, elapsed_s=elapsed_s, keep=config.keep
        )

    def _save_untrained(self) -> None:
        """The control of every learning claim: the network at step 0, its BatchNorm set by one pass."""
        if self.rank != 0 or is_model(self.plan.uri("untrained")):
            return
        network = deepcopy(self.network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive(self.config.seed, "calibration"))
            calibrate(network, self._calibration())
        self._save_model("untrained", network, 0)

    def _calibration(self) -> Iterator[Tensor]:
        shape = self.plan.shape
        whole = -(-CALIBRATION_FACES // shape.faces)
        for step in range(min(whole, self.config.steps)):
            images = self.loader.load(step, range(shape.groups)).images.to(self.device)
            yield from torch.split(images, shape.micro_batch)

    def _save_model(self, name: str, network: Embedder, steps: int) -> None:
        about = {**self.plan.about, "steps": steps}
        save_model(self.plan.uri(name), network, self.config.model, self.plan.dataset.preprocessing, about)


class _Journal:
    """Metrics and progress: global numbers, written by rank 0."""

    def __init__(self, plan: Plan, start: int, elapsed_s: float) -> None:
        self._plan, self._rank = plan, world()[0]
        self._watch = CollapseWatch(plan.config.mining)
        self._began = time.monotonic() - elapsed_s
        self._last = (start, time.monotonic())
        if self._rank == 0:
            self._lines = JsonLines(plan.uri("metrics.jsonl"), keep=lambda line: line["step"] <= start)

    @property
    def elapsed_s(self) -> float:
        """Seconds trained, over all attempts."""
        return time.monotonic() - self._began

    def write(self, done: int, result: Forward, labels: Tensor, faces: Tensor, lr: float) -> None:
        """One line after ``done`` steps. Collective: every rank must call it."""
        config = self._plan.config
        metrics = measure(result, labels, faces, config.mining.margin)
        if self._rank != 0:
            return
        seconds = self._seconds_a_step(done)
        metrics |= {
            "step": done,
            "lr": lr,
            "miner": config.mining.miner(done - 1, config.steps),
            "images_per_s": self._plan.shape.faces / seconds,
            "elapsed_s": self.elapsed_s,
        }
        self._lines.append(metrics)
        print(progress_line(metrics, config.steps, seconds * (config.steps - done)), flush=True)
        if warning := self._watch.warning(metrics):
            print(warning, flush=True)

    def _seconds_a_step(self, done: int) -> float:
        (before, then), now = self._last, time.monotonic()
        self._last = (done, now)
        return max(now - then, 1e-9) / max(done - before, 1)


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
    )


def _distributed(model: MicroBatches) -> nn.Module:
    """DDP where there are several ranks.

    Buffers are not synchronised in forward: the running statistics are equal on all ranks already. Looking for unused
    parameters keeps the bucket layout fixed; rebuilt after the first step, it made a resumed run differ at W = 3.
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
def _threads(count: int) -> Iterator[None]:
    """Torch's and OpenCV's threads for the length of a run: several workers share a machine."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(count)
    cv2.setNumThreads(1)  # decoding has a thread of its own
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
