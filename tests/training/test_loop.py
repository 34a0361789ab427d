"""Runs from start to end: what they leave, that kills change nothing, and that faults are one line before any work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from facerec.errors import ConfigError, DatasetError, FacerecError, MismatchError
from facerec.models.embedder import ModelConfig, build
from facerec.models.format import load_model, read_card, save_model
from facerec.publish import Dataset
from facerec.schema import Preprocessing
from facerec.telemetry import JsonLines, read_json_lines
from facerec.training import loop, state
from facerec.training.config import OptimizerConfig, TrainConfig
from facerec.training.loop import train
from facerec.training.measures import CollapseWatch, spread_of
from facerec.training.mining import MiningConfig
from facerec.training.plan import make_plan
from facerec.training.schedule import BatchConfig
from tests.support.ddp import run_ddp
from tests.support.faces import write_faces

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
    assert len(record["split"]["train"]) == 9
    assert len(record["split"]["unseen"]) == 3
    assert record["faces"]["digest"] == faces.digest


def test_the_untrained_network_is_the_one_at_step_0_with_statistics(finished: Path) -> None:
    untrained, fresh = load_model(str(finished / "untrained"))[0], build(MODEL, 0)
    for ours, theirs in zip(untrained.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(untrained.network.norm.running_mean, fresh.network.norm.running_mean)  # type: ignore[arg-type,union-attr]


def test_a_finished_run_returns_at_once(
    faces: Dataset, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "work", None)
    train(config_of(faces, finished))
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize("damaged", [False, True])
def test_killed_and_resumed_gives_bit_identical_weights(
    faces: Dataset, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    _die_at(monkeypatch, 5)
    with pytest.raises(Kill):
        train(config_of(faces, tmp_path / "run"))
    monkeypatch.undo()
    if damaged:
        newest = tmp_path / "run" / "checkpoints" / "step-00000004" / "state.pt"
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


def test_two_and_three_ranks_train_what_one_process_trains(
    faces: Dataset, finished: Path, tmp_path: Path
) -> None:
    """In fp32, where Adam turns the rounding of a gradient near 0 into a step: so by metrics, not by weights."""
    alone = read_json_lines(str(finished / "metrics.jsonl"))
    for workers in (2, 3):
        run = tmp_path / str(workers)
        run_ddp(workers, loop.work, make_plan(config_of(faces, run)))
        together = read_json_lines(str(run / "metrics.jsonl"))
        assert weights(run, "untrained") == weights(finished, "untrained")
        assert together[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-4)
        for one, other in zip(alone, together, strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=0.02)
            assert other["d_an"] == pytest.approx(one["d_an"], rel=0.02)
            assert other["nearest_negative"] == pytest.approx(one["nearest_negative"], rel=0.02)
            assert other["effective_rank"] == pytest.approx(one["effective_rank"], rel=0.02)


def test_the_newest_whole_checkpoint_is_taken_and_the_damaged_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    for step in (1, 2, 3):
        state.save(str(tmp_path), step, network, optimizer, MODEL, elapsed_s=1.5, keep=2)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "step-00000003" / "state.pt").write_bytes(b"torn")
    found = state.latest(str(tmp_path), MODEL)
    assert found is not None
    assert found.step == 2
    assert "step-00000003 is damaged" in capsys.readouterr().out
    assert state.restore(found, network, optimizer) == 1.5
    (tmp_path / "step-00000002" / "state.json").unlink()
    assert state.latest(str(tmp_path), MODEL) is None
    state.save(str(tmp_path), 4, network, optimizer, MODEL, elapsed_s=1.5, keep=2)
    with pytest.raises(MismatchError, match="is of the network"):
        state.latest(str(tmp_path), ModelConfig())


@pytest.mark.parametrize(
    "changes, error, said",
    [
        ({"faces": "/nowhere"}, DatasetError, r"/nowhere.*jobs/align\.py"),
        ({"batch": BatchConfig(p=16, k=4, micro_batch=8)}, ConfigError, "p is 16 but 9 training identities"),
        ({"batch": BatchConfig(micro_batch=64)}, ConfigError, "9 training identities of 4 faces do not fill"),
        ({"num_workers": 5}, ConfigError, "5 workers but 4 micro-batches"),
        ({"model": ModelConfig(backbone="nonet")}, ConfigError, "'nonet'.*--model.backbone"),
        ({"init": "/nowhere"}, DatasetError, "holds no model"),
    ],
)
def test_faults_are_one_line_before_any_work(
    faces: Dataset, tmp_path: Path, changes: dict[str, Any], error: type[FacerecError], said: str
) -> None:
    with pytest.raises(error, match=said) as raised:
        train(config_of(faces, tmp_path / "run", **changes))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"num_workers": -1}, {"keep": 0}, {"threads": 0}])
def test_root_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="--"):
        TrainConfig(faces="f", run="r", **wrong)  # type: ignore[arg-type]


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
    write_faces(tmp_path / "grown", 13, 5, side=64, generation=2)
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


@pytest.mark.parametrize("mining, loss", [(MiningConfig(), 0.201), (MiningConfig(soft=5.0), 0.6932)])
def test_collapse_is_said_after_three_lines_and_names_what_to_change(
    mining: MiningConfig, loss: float
) -> None:
    watch = CollapseWatch(mining)
    bad = {"loss": loss, "active": 9, "nearest_negative": 0.001, "effective_rank": 1.0}
    good = bad | {"loss": loss / 2}
    assert [watch.warning(line) for line in (bad, bad, good, bad, bad)] == [None] * 5
    said = watch.warning(bad)
    assert said is not None
    assert "--mining.strategy semi_hard" in said


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


@pytest.mark.usefixtures("ray_local")
def test_two_ray_workers_train_to_the_end(faces: Dataset, finished: Path, tmp_path: Path) -> None:
    train(config_of(faces, tmp_path / "run", num_workers=2))
    assert weights(tmp_path / "run", "untrained") == weights(finished, "untrained")
    assert read_card(str(tmp_path / "run" / "model")).about["steps"] == 6
