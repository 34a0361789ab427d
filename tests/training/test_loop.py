"""Runs from start to end: what they leave, that kills change nothing, and that faults are one line before any work."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train
import torch
from torch import Tensor

from facerec import session, storage
from facerec.errors import ConfigError, DatasetError, FacerecError, MismatchError, StorageError
from facerec.models.embedder import ModelConfig, build
from facerec.models.format import load_model, read_card, save_model
from facerec.publish import Dataset
from facerec.schema import Preprocessing
from facerec.telemetry import JsonLines, flat, read_json_lines
from facerec.training import fit, loop, state
from facerec.training.batches import BatchConfig
from facerec.training.batchnorm import calibrate
from facerec.training.clock import PHASES
from facerec.training.config import OptimizerConfig, TrainConfig
from facerec.training.distances import Anchors
from facerec.training.fit import train
from facerec.training.loader import FaceStore
from facerec.training.measures import CollapseWatch, spread_of
from facerec.training.metric_learning import LibraryLoss
from facerec.training.mining import MiningConfig
from facerec.training.plan import Plan, make_plan
from facerec.training.step import nearest_negatives
from facerec.training.validation import Validation
from facerec.training.verdict import verdict
from tests.support.ddp import run_ddp
from tests.support.faces import write_faces
from tests.support.gauges import documented

MODEL = ModelConfig(side=32, dropout=0.1)
Kill = type("Kill", (RuntimeError,), {})


def config_of(dataset: Dataset, run: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "faces": dataset.folder,
        "run": str(run),
        "model": MODEL,
        "batch": BatchConfig(p=8, k=4, micro_batch=8),
        "steps": 6,
        "num_workers": 0,
        "checkpoint_every": 2,
        "log_every": 2,
    }
    return TrainConfig(**(settings | changes))


def weights(run: Path, name: str = "model") -> bytes:
    return (run / name / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(faces: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train(config_of(faces, run))
    return run


def test_a_run_leaves_models_metrics_checkpoints_and_its_record(faces: Dataset, finished: Path) -> None:
    card, untrained = load_model(str(finished / "model"))[1], load_model(str(finished / "untrained"))[1]
    assert card.about == {"faces": faces.digest, "generation": 1, "steps": 6, "seed": 0}
    assert untrained.about["steps"] == 0
    assert card.preprocessing == faces.preprocessing
    assert card.model_id != untrained.model_id
    lines = read_json_lines(str(finished / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 4, 6]
    assert {"loss", "active_fraction", "d_ap", "d_an", "spread", "effective_rank", "lr"} <= lines[0].keys()
    assert {"images_per_s", "elapsed_s", "nearest_negative"} <= lines[0].keys()
    assert [place.name for place in sorted((finished / "checkpoints").iterdir())] == [
        "step-00000004",
        "step-00000006",
    ]
    record = json.loads((finished / "run.json").read_text())
    assert record["batch"] == {"p": 8, "k": 4, "micro_batch": 8}
    assert record["precision"] == "fp32"
    assert len(record["split"]["train"]) == 9
    assert len(record["split"]["unseen"]) == 3
    assert record["faces"]["digest"] == faces.digest


def test_every_gauge_of_a_run_is_listed_for_those_who_watch_it(finished: Path) -> None:
    names = {
        name.replace("/", "_")
        for line in read_json_lines(str(finished / "metrics.jsonl"))
        for name in flat(line)
    }
    listed = documented("train")
    others = (
        "_validation_",
        "_untrained_",
        "_training_people_",
        "_mfu",
    )  # not of every run, nor of every line
    found = {f"ray_facerec_train_{name}" for name in names}
    assert found <= listed
    assert listed - found == {name for name in listed - found if any(other in name for other in others)}
    assert "ray_facerec_train_validation_nearest_neighbour" in listed


def test_the_untrained_network_is_the_one_at_step_0_with_statistics(finished: Path) -> None:
    untrained, fresh = load_model(str(finished / "untrained"))[0], build(MODEL, 0)
    for ours, theirs in zip(untrained.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(untrained.network.norm.running_mean, fresh.network.norm.running_mean)  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize(("wanted", "read"), [(20, 24), (70, 96), (10**6, 192)])
def test_the_untrained_networks_statistics_are_of_so_many_faces_whatever_the_batch(
    faces: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, read: int
) -> None:
    """Micro-batches of 8: of 24 faces within a batch of 32, of whole batches above, at most of the run's six."""
    seen: list[int] = []

    def counted(micro_batches: Iterator[Tensor]) -> Iterator[Tensor]:
        for images in micro_batches:
            seen.append(len(images))
            yield images

    monkeypatch.setattr(loop, "CALIBRATION_FACES", wanted)
    monkeypatch.setattr(
        loop, "calibrate", lambda network, micro_batches: calibrate(network, counted(micro_batches))
    )
    train(config_of(faces, tmp_path / "run"))
    assert set(seen) == {8}
    assert sum(seen) == read


def test_a_finished_run_returns_at_once(
    faces: Dataset, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "work", None)
    record = (finished / "run.json").read_bytes()
    train(config_of(faces, finished, num_workers=3))
    assert "finished already" in capsys.readouterr().out
    assert (finished / "run.json").read_bytes() == record, "of those who trained it"


def test_a_finished_run_goes_on_with_more_steps_and_says_so_in_its_record(
    faces: Dataset, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = weights(run)
    _die_at(monkeypatch, 3)
    with pytest.raises(Kill):
        train(config_of(faces, run, steps=10))
    monkeypatch.undo()
    assert (weights(run), read_card(str(run / "model")).about["steps"]) == (before, 6), "until the new end"
    with pytest.raises(MismatchError, match=r"planned for 10 steps and --steps is 6; .*at least 10 or"):
        train(config_of(faces, run, steps=6))
    train(config_of(faces, run, steps=10))
    card = load_model(str(run / "model"))[1]
    assert card.about["steps"] == 10
    assert weights(run) != before
    assert weights(run, "untrained") == weights(finished, "untrained")
    lines = {line["step"]: line for line in read_json_lines(str(run / "metrics.jsonl"))}
    assert list(lines) == [1, 2, 4, 6, 8, 10]
    rate = OptimizerConfig().lr_at
    assert [lines[step]["lr"] for step in (6, 8)] == [rate(5, 6), rate(7, 10)], (
        "of the larger total from there on"
    )
    record = json.loads((run / "run.json").read_text())
    assert record["planned"] == [{"after": 0, "steps": 6}, {"after": 6, "steps": 10}]
    assert record["config"]["steps"] == 10
    with pytest.raises(MismatchError, match=r"mining\.margin is 0\.2 there and 0\.5 here"):
        train(config_of(faces, run, steps=12, mining=MiningConfig(margin=0.5)))
    monkeypatch.setattr(fit, "work", None)
    train(config_of(faces, run, steps=10))


def test_an_unfinished_run_that_is_given_more_steps_is_killed_and_resumed_bit_identically(
    faces: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, kills in (("whole", ()), ("killed", (3,))):
        _die_at(monkeypatch, 3)
        with pytest.raises(Kill):
            train(config_of(faces, tmp_path / name))
        monkeypatch.undo()
        for kill in kills:
            _die_at(monkeypatch, kill)
            with pytest.raises(Kill):
                train(config_of(faces, tmp_path / name, steps=8))
            monkeypatch.undo()
        train(config_of(faces, tmp_path / name, steps=8))
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    record = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert record["planned"] == [{"after": 0, "steps": 6}, {"after": 2, "steps": 8}]


@pytest.mark.parametrize("damaged", [False, True])
def test_killed_and_resumed_gives_bit_identical_weights(
    faces: Dataset, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    _die_at(monkeypatch, 5)
    with pytest.raises(Kill):
        train(config_of(faces, tmp_path / "run"))
    monkeypatch.undo()
    if damaged:
        (newest,) = (tmp_path / "run" / "checkpoints" / "step-00000004").glob("state-*.pt")
        newest.write_bytes(newest.read_bytes()[:-100])
    train(config_of(faces, tmp_path / "run"))
    assert weights(tmp_path / "run") == weights(finished)
    assert weights(tmp_path / "run", "untrained") == weights(finished, "untrained")
    steps = [line["step"] for line in read_json_lines(str(tmp_path / "run" / "metrics.jsonl"))]
    assert steps == [1, 2, 4, 6]


def _die_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    descend, calls = loop.descend, iter(range(100))

    def descend_or_die(*args: Any, **settings: Any) -> Any:
        if next(calls) == step:
            raise Kill
        return descend(*args, **settings)

    monkeypatch.setattr(loop, "descend", descend_or_die)


def work_until(plan: Plan, step: int) -> None:
    """What a rank does, up to a step; then it is gone."""
    whole = loop.Worker._step

    def step_or_leave(worker: loop.Worker, model: Any, batch: Any, journal: Any) -> None:
        whole(worker, model, batch, journal)
        if batch.step + 1 == step:
            raise SystemExit

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(loop.Worker, "_step", step_or_leave)
        loop.work(plan)


def test_resumed_at_another_world_size_a_run_sees_the_same_batches_and_loses_the_same(
    faces: Dataset, tmp_path: Path
) -> None:
    """In fp32, where rounding grows: so a residual network at a small rate, and a loss that no turned triplet jumps by.

    Semi-hard, which leaves pairs out as they pass the margin, was 1.1e-4 apart at the worst step.
    """
    changes = {
        "model": ModelConfig(backbone="resnet10t", side=32),
        "optimizer": OptimizerConfig(lr=1e-4),
        "mining": MiningConfig(strategy="batch_hard", soft=5.0),
        "precision": "fp32",
        "steps": 600,
        "log_every": 1,
        "checkpoint_every": 4,
    }
    plan = make_plan(config_of(faces, tmp_path / "2", **changes))
    run_ddp(2, work_until, plan, 4)
    lines = {}
    for workers in (1, 2, 3):
        run = tmp_path / str(workers)
        if workers != 2:
            shutil.copytree(tmp_path / "2", run)
    for workers in (1, 3, 2):
        run = tmp_path / str(workers)
        run_ddp(workers, work_until, make_plan(config_of(faces, run, **changes)), 24)
        lines[workers] = read_json_lines(str(run / "metrics.jsonl"))
        assert [line["step"] for line in lines[workers]] == [*range(1, 25)]
    for workers in (1, 3):
        assert [line["batches"] for line in lines[workers]] == [line["batches"] for line in lines[2]]
        for one, other in zip(lines[workers], lines[2], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.parametrize(("workers", "shared"), [(2, 2), (3, 1)])
def test_killed_and_resumed_at_the_same_world_size_gives_bit_identical_weights(
    workers: int, shared: int, crowd: Dataset, tmp_path: Path
) -> None:
    """With everything that a checkpoint holds: moving average and validation score; and with gradient caching."""
    batch = BatchConfig(p=16, k=4, micro_batch=8, cache=True)
    changes = {"ema": 0.9, "batch": batch, "shared_forward": shared}
    whole, killed = (make_plan(config_of(crowd, tmp_path / name, **changes)) for name in ("whole", "killed"))
    run_ddp(workers, loop.work, whole)
    run_ddp(workers, work_until, killed, 5)
    run_ddp(workers, loop.work, killed)
    for name in ("model", "best", "untrained"):
        assert weights(tmp_path / "killed", name) == weights(tmp_path / "whole", name)


def test_the_newest_whole_checkpoint_is_taken_and_the_damaged_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"weights": torch.ones(3)}
    for step in (1, 2, 3):
        state.save(str(tmp_path), step, content, MODEL, score=None, keep=2)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "step-00000003" / "state.pt").write_bytes(b"torn")
    found = state.latest(str(tmp_path), MODEL)
    assert found is not None
    assert found.step == 2
    assert torch.equal(found.content()["weights"], torch.ones(3))
    assert "step-00000003 is damaged" in capsys.readouterr().out
    (tmp_path / "copies").mkdir()  # by a user's hand
    for damage in ("null", "[]", '{"step": 2}', '{"step": 2, "file": 1}', "\0", '{"score": "high"}'):
        (tmp_path / "step-00000002" / "state.json").write_text(damage)
        assert state.latest(str(tmp_path), MODEL) is None
        assert state.best(str(tmp_path), MODEL) is None
        assert "none of 2 checkpoints is whole" in capsys.readouterr().out
    assert state.newest_step(str(tmp_path)) == 3
    state.save(str(tmp_path), 4, content, MODEL, score=None, keep=2)
    with pytest.raises(MismatchError, match="is of the network"):
        state.latest(str(tmp_path), ModelConfig())


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("torn", ["state.pt", "state.json"])
def test_a_torn_newest_checkpoint_never_displaces_the_complete_one(
    tmp_path: Path, keep: int, torn: str
) -> None:
    """A kill leaves a checkpoint without state.json, or a disk damages one; the next save is of an earlier step."""
    for step in (200, 300):
        state.save(str(tmp_path), step, {}, MODEL, score=0.5 if step == 300 else None, keep=2)
    newest = tmp_path / "step-00000300"
    (newest / "state.pt").write_bytes(b"half")
    if torn == "state.json":
        (newest / "state.json").unlink()
        assert state.newest_step(str(tmp_path)) == 200
    state.save(str(tmp_path), 237, {}, MODEL, score=None, keep=keep)
    expected = ["step-00000200", "step-00000237"][-keep:]
    assert sorted(place.name for place in tmp_path.iterdir()) == expected
    found = state.latest(str(tmp_path), MODEL)
    assert found is not None
    assert found.step == state.newest_step(str(tmp_path)) == 237


def test_a_torn_checkpoint_is_not_one_of_those_that_are_kept(tmp_path: Path) -> None:
    for step in (100, 200):
        state.save(str(tmp_path), step, {}, MODEL, score=None, keep=2)
    (tmp_path / "step-00000200" / "state.json").unlink()
    state.save(str(tmp_path), 300, {}, MODEL, score=None, keep=2)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["step-00000100", "step-00000300"]


def test_the_best_checkpoint_by_validation_outlives_the_last_ones(tmp_path: Path) -> None:
    for step, score in enumerate([0.1, 0.7, 0.7, 0.3, 0.2, None], start=1):
        state.save(str(tmp_path), step, {}, MODEL, score=score, keep=2)
    assert sorted(place.name[-1] for place in tmp_path.iterdir()) == ["2", "5", "6"]
    found = state.best(str(tmp_path), MODEL)
    assert found is not None
    assert (found.step, found.score) == (2, 0.7)
    assert state.newest_step(str(tmp_path)) == 6
    (tmp_path / "step-00000002" / "state.pt").write_bytes(b"torn")
    found = state.best(str(tmp_path), MODEL)
    assert found is not None
    assert found.step == 5


@pytest.mark.parametrize(
    "changes, error, said",
    [
        ({"faces": "/nowhere"}, DatasetError, r"/nowhere.*jobs/align\.py"),
        ({"batch": BatchConfig(p=16, k=4, micro_batch=8)}, ConfigError, "p is 16 but 9 training identities"),
        ({"batch": BatchConfig(micro_batch=64)}, ConfigError, "9 training identities of 4 faces do not fill"),
        ({"num_workers": 5}, ConfigError, "5 workers but 4 micro-batches"),
        ({"model": ModelConfig(backbone="nonet")}, ConfigError, "'nonet'.*--model.backbone"),
        ({"mining": MiningConfig(shares=5)}, ConfigError, "5 shares of 8 people.*at most 4"),
        ({"num_workers": (5, 6)}, ConfigError, "5 workers but 4 micro-batches"),
        ({"init": "/nowhere"}, DatasetError, "holds no model"),
        ({"library": LibraryLoss(loss="NoLoss")}, ConfigError, "no loss 'NoLoss'.*--library.loss"),
        (
            {"library": LibraryLoss(loss="ArcFaceLoss", loss_args={"num_classes": 9, "embedding_size": 128})},
            ConfigError,
            "ArcFaceLoss has weights of its own",
        ),
        ({"library": LibraryLoss(loss="TripletMarginLoss", loss_args={"margine": 1})}, ConfigError, "_args"),
    ],
)
def test_faults_are_one_line_before_any_work(
    faces: Dataset, tmp_path: Path, changes: dict[str, Any], error: type[FacerecError], said: str
) -> None:
    with pytest.raises(error, match=said) as raised:
        train(config_of(faces, tmp_path / "run", **changes))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"num_workers": -1}, {"num_workers": (2, 1)}, {"keep": 0}, {"ema": 1.0}]
)
def test_root_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--"):
        TrainConfig(faces="f", run="r", **wrong)


def test_a_run_folder_of_other_settings_or_foreign_files_is_refused(
    faces: Dataset, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match=r"mining\.margin is 0\.2 there and 0\.5 here"):
        train(config_of(faces, finished, mining=MiningConfig(margin=0.5)))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MismatchError, match=r"notes\.txt, which is not ours; choose another --run"):
        train(config_of(faces, tmp_path))


def test_a_run_goes_on_with_its_generation_and_refuses_other_faces(
    faces: Dataset, finished: Path, tmp_path: Path
) -> None:
    other = write_faces(tmp_path / "other", 12, 5, seed=1, side=64)
    with pytest.raises(MismatchError, match="began on faces with digest"):
        train(config_of(other, finished))
    grown = write_faces(tmp_path / "grown", 12, 5, side=64)
    assert grown.digest == faces.digest
    write_faces(tmp_path / "grown", 13, 5, side=64)
    assert make_plan(config_of(grown, finished)).dataset.generation == 1


def test_a_run_starts_from_a_model_and_refuses_one_of_another_network(
    faces: Dataset, finished: Path, tmp_path: Path
) -> None:
    contract = Preprocessing().to_json()
    small = dataclasses.replace(MODEL, side=48)
    save_model(str(tmp_path / "small"), build(small, 0), small, contract, {})
    with pytest.raises(MismatchError, match="has side 48 and this run has 32"):
        train(config_of(faces, tmp_path / "a", init=str(tmp_path / "small")))
    save_model(str(tmp_path / "old"), build(MODEL, 0), MODEL, contract | {"template": "other"}, {})
    with pytest.raises(MismatchError, match="template"):
        train(config_of(faces, tmp_path / "b", init=str(tmp_path / "old")))
    start = str(finished / "model")
    train(config_of(faces, tmp_path / "c", init=start, steps=1, optimizer=OptimizerConfig(lr=1e-12)))
    before, after = load_model(start)[0], load_model(str(tmp_path / "c" / "model"))[0]
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "mining, loss",
    [
        (MiningConfig(), 0.201),
        (MiningConfig(soft=5.0), 0.6932),
        (MiningConfig(strategy="n_pair", soft=5.0), 3.367),  # log(1 + 7 * 4)
        (MiningConfig(strategy="multi_similarity"), 0.9385),  # log(1 + 3 / e) / 2 + log(1 + 28 e^25) / 50
    ],
)
def test_collapse_is_said_after_three_lines_and_names_what_to_change(
    mining: MiningConfig, loss: float
) -> None:
    watch = CollapseWatch(mining.loss_at_collapse(8, 4), mining.margin)
    bad = {"loss": loss, "active": 9, "nearest_negative": 0.001, "effective_rank": 1.0}
    good = bad | {"loss": loss / 2}
    assert [watch.warning(line) for line in (bad, bad, good, bad, bad)] == [None] * 5
    said = watch.warning(bad)
    assert said is not None
    assert "--mining.strategy semi_hard" in said


def test_the_nearest_other_person_is_as_far_as_the_miner_measures() -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(12, 8), dim=1)
    anchors = Anchors(embeddings, embeddings, np.arange(12) // 3, np.arange(12))
    squared, plain = nearest_negatives(anchors, "squared"), nearest_negatives(anchors, "l2")
    assert torch.allclose(plain**2, squared, atol=1e-6)
    assert not torch.allclose(plain, squared, atol=1e-2)


def test_spread_and_rank_tell_even_directions_from_one_point() -> None:
    assert spread_of(torch.ones(8, 4) / 2) == (0.0, 1.0)
    even = torch.cat([torch.eye(4), -torch.eye(4)])
    spread, rank = spread_of(even)
    assert (spread, rank) == pytest.approx((1.0, 4.0))


def test_a_torn_last_line_of_a_log_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"st')
    JsonLines(str(log), keep=lambda line: line["step"] < 2).append({"step": 5})
    assert log.read_text() == '{"step": 1}\n{"step": 5}\n'


def test_no_more_workers_are_taken_than_there_are_micro_batches(faces: Dataset, tmp_path: Path) -> None:
    for asked, taken in (((2, 5), (2, 4)), ((1, 3), (1, 3)), (4, (4, 4)), (0, (0, 0))):
        assert make_plan(config_of(faces, tmp_path, num_workers=asked)).workers == taken


@pytest.mark.usefixtures("ray_local")
def test_more_workers_than_cores_are_refused_where_no_more_will_come_and_told_of_where_they_may(
    faces: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(faces, tmp_path / "run", batch=BatchConfig(p=8, k=4, micro_batch=4), num_workers=8)
    monkeypatch.setattr(fit, "_fit", lambda _plan: None)
    monkeypatch.setattr(session, "alone", lambda: True)
    said = "8 workers take a CPU each, and Ray has 2"
    with pytest.raises(ConfigError, match=rf"{said}; choose fewer \(--num_workers\)"):
        train(config)
    monkeypatch.setattr(session, "alone", lambda: False)
    train(config)
    assert f"waiting: {said} by now" in capsys.readouterr().out


def test_validation_people_are_scored_at_each_checkpoint_and_choose_the_best(
    crowd: Dataset, tmp_path: Path
) -> None:
    train(config_of(crowd, tmp_path / "run"))
    lines = {line["step"]: line for line in read_json_lines(str(tmp_path / "run" / "metrics.jsonl"))}
    scores = {
        step: line["validation"]["nearest_neighbour"] for step, line in lines.items() if "validation" in line
    }
    assert scores.keys() == {2, 4, 6}
    assert [step for step, line in lines.items() if "untrained" in line] == [1]
    assert {
        f"ray_facerec_train_{name}".replace("/", "_") for name in flat(lines[1]) if "untrained/" in name
    } < documented("train")
    best = read_card(str(tmp_path / "run" / "best")).about["steps"]
    assert scores[best] == max(scores.values())
    split = json.loads((tmp_path / "run" / "run.json").read_text())["split"]
    assert len(split["validation"]) == 6
    assert not set(split["validation"]) & {*split["train"], *split["unseen"]}


@pytest.mark.parametrize(("rate", "learns"), [(1e-12, False), (10.0, False), (1e-3, True)])
def test_a_run_without_validation_people_that_learned_nothing_is_not_called_learning(
    faces: Dataset, tmp_path: Path, rate: float, learns: bool
) -> None:
    """Nine people to train on, none to validate with: the untrained network and checkpoints are scored on the nine."""
    config = config_of(
        faces, tmp_path / "run", steps=40, checkpoint_every=10, optimizer=OptimizerConfig(lr=rate)
    )
    train(config)
    metrics = read_json_lines(str(tmp_path / "run" / "metrics.jsonl"))
    assert metrics[0]["untrained"]["faces"] == 45
    assert [line["step"] for line in metrics if "training_people" in line] == [10, 20, 30, 40]
    found = verdict(metrics, make_plan(config).loss_at_collapse, config.mining.margin)
    assert (found.word in ("learning", "under-trained")) == learns, found
    assert not (tmp_path / "run" / "best").exists(), "training people choose nothing"


def test_the_untrained_network_is_scored_alike_at_every_number_of_workers(
    crowd: Dataset, tmp_path: Path
) -> None:
    found = {}
    for workers in (1, 3):
        run = tmp_path / str(workers)
        run_ddp(workers, loop.work, make_plan(config_of(crowd, run, steps=1)))
        found[workers] = read_json_lines(str(run / "metrics.jsonl"))[0]["untrained"]
    assert found[3] == pytest.approx(found[1])
    network = load_model(str(tmp_path / "1" / "untrained"))[0]
    plan = make_plan(config_of(crowd, tmp_path / "1", steps=1))
    store = FaceStore(plan.dataset, plan.index())
    looked_at = Validation(store, plan.index(), plan.split.validation, plan.config.validation, MODEL.side)
    assert found[1] == looked_at.score(network, torch.device("cpu"), "fp32")


def test_a_moving_average_of_the_weights_is_what_is_saved(faces: Dataset, tmp_path: Path) -> None:
    for name, ema in (("plain", 0.0), ("average", 0.5)):
        train(config_of(faces, tmp_path / name, steps=3, checkpoint_every=1, keep=9, ema=ema))
    states = [
        state._read(str(tmp_path / "plain" / "checkpoints" / f"step-0000000{step}"), MODEL).content()[
            "network"
        ]
        for step in (1, 2, 3)
    ]
    decays = (2 / 11, 3 / 12)  # both below 0.5
    shares = (decays[0] * decays[1], (1 - decays[0]) * decays[1], 1 - decays[1])
    expected = {
        name: sum(share * weights[name] for share, weights in zip(shares, states, strict=True))
        for name in states[0]
    }
    saved = load_model(str(tmp_path / "average" / "model"))[0].state_dict()
    for name, value in saved.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("broken", "seen", "safe"), [(4, 4, 2), (5, 6, 4), (6, 6, 4)])
def test_numbers_that_are_none_stop_the_run_name_the_step_and_leave_the_last_good_checkpoint(
    faces: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int, seen: int, safe: int
) -> None:
    """By the update of a step that is saved, and of one that is not: the next forward finds that out."""
    _break_at(monkeypatch, broken)
    said = rf"since step {seen} \(seen at step {seen}\); the checkpoint after step {safe} stands.*--opt"
    with pytest.raises(ConfigError, match=said):
        train(config_of(faces, tmp_path / "run"))
    folder = str(tmp_path / "run" / "checkpoints")
    assert state.newest_step(folder) == safe
    kept = state.latest(folder, MODEL)
    assert kept is not None
    assert all(weight.isfinite().all() for weight in kept.content()["network"].values())
    assert not (tmp_path / "run" / "model").exists()


def _break_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    update = loop.Worker._update

    def break_then_update(worker: loop.Worker, at: int) -> None:
        update(worker, at)
        if at + 1 == step:
            next(worker.network.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(loop.Worker, "_update", break_then_update)


def test_curves_can_be_read_by_tensorboard(finished: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        curves = EventAccumulator(str(finished / "tensorboard"))
        curves.Reload()
    lines = read_json_lines(str(finished / "metrics.jsonl"))
    for name in ("loss", "active_fraction", "gradient_norm", "data_wait", "memory_mb", "effective_rank"):
        points = [(point.step, point.value) for point in curves.Scalars(name)]
        assert points == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
    assert {"d_ap/1", "d_an/1", *(f"seconds/{phase}" for phase in PHASES)} <= set(curves.Tags()["scalars"])


def test_a_loss_of_the_metric_learning_library_trains_to_the_end(faces: Dataset, tmp_path: Path) -> None:
    loss = LibraryLoss(loss="MultiSimilarityLoss", miner="MultiSimilarityMiner")
    train(config_of(faces, tmp_path / "run", library=loss))
    lines = read_json_lines(str(tmp_path / "run" / "metrics.jsonl"))
    assert {line["miner"] for line in lines} == {"MultiSimilarityLoss"}
    assert all(line["loss"] > 0 for line in lines)


@pytest.mark.usefixtures("ray_local")
def test_a_fault_of_the_users_that_a_worker_finds_is_one_line_at_the_first_attempt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces = write_faces(tmp_path / "faces", 12, 5, side=64)
    config = config_of(faces, tmp_path / "run", num_workers=(1, 2))
    Path(faces.uris("faces")[0]).unlink()
    with pytest.raises(DatasetError, match=r"faces-00000\.parquet.*run jobs/align\.py again"):
        train(config)
    assert "starting again" not in capsys.readouterr().out


def test_s3_that_refuses_all_attempts_is_one_line_too(
    faces: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, tried = make_plan(config_of(faces, tmp_path / "run", num_workers=2)), []

    class Refused:
        def fit(self) -> None:
            tried.append(1)
            storage.write_json(plan.uri("fault.json"), {"kind": "StorageError", "said": "AccessDenied"})
            raise ray.train.TrainingFailedError("a worker failed")

    monkeypatch.setattr(fit, "_trainer", lambda _plan: Refused())
    with pytest.raises(StorageError, match=r"^AccessDenied$"):
        fit._fit(plan)
    assert len(tried) == 2, "once more, as it may have been over"


@pytest.mark.usefixtures("ray_local")
def test_two_ray_workers_train_to_the_end_also_in_a_relative_folder(
    faces: Dataset, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the driver's; Ray Train gives its workers another
    for steps in (6, 8):
        train(config_of(faces, Path("run"), num_workers=2, steps=steps))
        assert read_card(str(tmp_path / "run" / "model")).about["steps"] == steps
    assert weights(tmp_path / "run", "untrained") == weights(finished, "untrained")
