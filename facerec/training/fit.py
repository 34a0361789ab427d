"""Training as a job: check everything, then run the same worker on every rank, here or under Ray Train.

The driver's part of surviving: workers are started again as long as the run gets on between failures, and a fault of
the user's, found by a worker, comes back as its one line instead of three more attempts.
"""

from __future__ import annotations

from typing import Any

from facerec import errors, lock, nodes, session, storage
from facerec.errors import BusyError, ConfigError, FacerecError, ProcessError, StorageError
from facerec.models.format import is_model, read_card
from facerec.training import state
from facerec.training.config import TrainConfig
from facerec.training.gather import from_first
from facerec.training.loop import work
from facerec.training.plan import Plan, claim, make_plan, record

RESTARTS = 3
"""Times that Ray Train starts the workers again before the driver looks whether the run gets on at all."""


def train(config: TrainConfig) -> None:
    """Train, or go on training, until ``run/model/`` is of the last step; a finished run returns at once.

    A finished run with a larger ``steps`` goes on from its last checkpoint; its model stays until the new one is written.
    Needs an initialised Ray unless ``num_workers`` is 0. Raises FacerecError, with one line, before any work if the
    settings, the faces and the run folder do not fit together.
    """
    plan = make_plan(config)
    with lock.exclusive(plan.uri(), "--run") as fence:
        plan = claim(plan, fence)
        if _is_finished(plan):
            print(
                f"train: {config.run} is finished already ({config.steps} steps): {plan.uri('model')}",
                flush=True,
            )
            return
        record(plan)
        split = plan.split
        print(
            f"train: {len(plan.identities)} identities to train on, {len(split.validation)} for validation, "
            f"{len(split.unseen)} unseen; batches of {plan.shape.p} x {plan.shape.k} faces in {plan.shape.groups} "
            f"micro-batches, {plan.precision}",
            flush=True,
        )
        before = state.newest_step(plan.uri("checkpoints"))
        with nodes.NodeSeconds() as held:
            if config.workers == (0, 0):
                work(plan)
            else:
                nodes.require_shared(plan.uri(), plan.dataset.folder)
                _look_for_workers(plan)
                _fit(plan)
        print(f"train: {held.of((config.steps - before) * plan.shape.faces, 'faces')}", flush=True)


def _is_finished(plan: Plan) -> bool:
    """Whether the trained model is there, and is of the last step."""
    uri = plan.uri("model")
    return is_model(uri) and read_card(uri).about.get("steps") == plan.config.steps


def _look_for_workers(plan: Plan) -> None:
    """Say so where there are too few cores or GPUs: a cluster may grow, a Ray of this machine alone would wait for ever."""
    kind, least = "GPU" if plan.config.gpu else "CPU", plan.workers[0]
    there = session.resources(kind)
    if there >= least:
        return
    said = f"{least} workers take a {kind} each, and Ray has {there}"
    if session.alone():
        raise ConfigError(f"{said}; choose fewer (--num_workers)")
    print(f"train: waiting: {said} by now; if no more will come, choose fewer (--num_workers)", flush=True)


def _fit(plan: Plan) -> None:
    """Ray Train to the end, again after each failure as long as there is a newer checkpoint than at the one before.

    A run that has lost its folder ends with BusyError. What Ray Train itself keeps below ``ray/`` is not fenced: it holds
    nothing that a result depends on.
    """
    import ray.train
    from ray.exceptions import RayActorError

    reached = -1
    while True:
        plan.require_held()
        storage.remove_file(plan.uri("fault.json"))
        try:
            _trainer(plan).fit()
        except (
            ray.train.TrainingFailedError,
            RayActorError,
        ) as error:  # the second: its controller was killed
            plan.require_held()
            newest, fault = state.newest_step(plan.uri("checkpoints")), _fault(plan)
            if newest <= reached or _is_final(fault):
                raise fault or error from None
            reached = newest
            said = str(error).strip().splitlines()[-1][:200]
            print(f"train: WARNING: {said}; starting again after step {newest}", flush=True)
            continue
        if (fault := _fault(plan)) and _is_final(fault):
            raise fault
        return


def _trainer(plan: Plan) -> Any:
    """Ray Train for the run. A worker asks Ray for one core, or with --gpu for one GPU alone.

    Loader processes are not part of the request. A worker that asked for their cores too would wait for ever on a machine
    with fewer cores, such as one with 4 cores and a GPU; with fewer cores the processes are only slower.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from facerec.training.rendezvous import MeetByFile

    config = plan.config
    least, most = plan.workers
    workers: Any = most if least == most else (least, most)  # Ray's type leaves the range out
    return TorchTrainer(
        _ray_worker,
        train_loop_config={"plan": plan},
        torch_config=MeetByFile() if session.alone() else TorchConfig(),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=config.gpu),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=plan.uri("ray"),
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
        ),
    )


def _ray_worker(loop_config: dict[str, Any]) -> None:
    import ray.train

    plan: Plan = loop_config["plan"]
    if from_first(_is_final(_fault(plan))):
        return  # said already; trying again would not mend it
    try:
        work(plan)
    except BusyError:
        raise  # the folder is another run's: nothing more is written there
    except FacerecError as error:
        fault = {"kind": type(error).__name__, "said": str(error)}
        plan.write(plan.uri("fault.json"), storage.json_bytes(fault))
        raise
    ray.train.report({"steps": plan.config.steps})


def _is_final(fault: FacerecError | None) -> bool:
    """Whether another attempt would fail too. S3 may answer at the next one, and memory may be free."""
    return fault is not None and not isinstance(fault, StorageError | ProcessError)


def _fault(plan: Plan) -> FacerecError | None:
    """What a worker found, as it said it."""
    uri = plan.uri("fault.json")
    if not storage.exists(uri):
        return None
    fault = storage.read_json(uri)
    kind: type[FacerecError] = getattr(errors, str(fault.get("kind")), FacerecError)
    return kind(fault.get("said", f"{uri} is damaged; run the same command again"))
