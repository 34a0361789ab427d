"""Evaluation end to end: what belongs together is scored beside its controls, and what does not is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pytest

from facerec import lock, schema, storage
from facerec.errors import BusyError, ConfigError, DatasetError, MismatchError, SourceError
from facerec.evaluation import identification
from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.pipeline import evaluate
from facerec.lock import Fence
from facerec.models.embedder import ModelConfig, build
from facerec.models.format import save_model
from facerec.naming.recognisers import FittedSvm
from facerec.svm import load_svm
from jobs.evaluate import plan
from tests.support.faces import write_faces
from tests.support.gauges import documented, gauges_of
from tests.support.generations import amend, generation

MODEL = ModelConfig(side=64)
PEOPLE, EACH, TRAINED = 10, 8, 4
"""Of all people, the first ones are trained on."""


@dataclass
class Rows:
    """What write_embeddings writes beside the vectors."""

    identities: list[str]
    uris: list[str]
    hashes: list[int]


def write_embeddings(folder: Path, rows: Rows, vectors: Any, model_id: str, digest: str) -> None:
    about = {"model_id": model_id, "preprocessing_id": "p", "faces_generation": 1}
    columns = zip(rows.identities, rows.uris, rows.hashes, vectors.tolist(), strict=True)
    table = pa.Table.from_pylist(
        [
            {
                "face_id": str(at),
                "identity": who,
                "source_uri": uri,
                "phash": phash,
                "embedding": vector,
                **about,
            }
            for at, (who, uri, phash, vector) in enumerate(columns)
        ],
        schema.EMBEDDINGS,
    )
    with generation(folder) as made:
        listed = [made.write("part.parquet", "embeddings", table)]
        made.publish(listed, {"model_id": model_id, "faces_digest": digest})


@dataclass
class Setting:
    """A finished run: ideal vectors as trained and random ones as untrained."""

    folder: Path
    config: EvaluateConfig
    rows: Rows
    cards: dict[str, str]
    digest: str

    def embed(self) -> None:
        """Write both embeddings again, as ``rows`` now are."""
        _, person = np.unique([uri.split("/")[-2] for uri in self.rows.uris], return_inverse=True)
        random = np.random.default_rng(0).normal(size=(len(person), 128))
        for name, model, vectors in (
            ("trained", "model", np.eye(128)[person]),
            ("control", "untrained", random),
        ):
            write_embeddings(self.folder / name, self.rows, vectors, self.cards[model], self.digest)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(identification, "PARALLEL_FACES", 10**9)
    faces = write_faces(tmp_path / "faces", PEOPLE, EACH)
    faces = amend(faces, {"label_conflicts": []})
    cards = {
        name: save_model(str(tmp_path / "run" / name), build(MODEL, seed), MODEL, faces.preprocessing, {})
        for seed, name in enumerate(("model", "untrained"))
    }
    table = faces.read("faces", ["identity", "source_uri", "phash"])
    rows = Rows(*(table[name].to_pylist() for name in ("identity", "source_uri", "phash")))
    names = sorted(set(rows.identities))
    split = {"train": names[:TRAINED], "validation": [], "unseen": names[TRAINED:]}
    pinned = {"folder": faces.folder, "generation": 1, "digest": faces.digest}
    storage.write_json(f"{tmp_path}/run/run.json", {"split": split, "faces": pinned})
    paths = {name: f"{tmp_path}/{name}" for name in ("run", "faces", "control")}
    config = EvaluateConfig(
        **paths, embeddings=f"{tmp_path}/trained", out=f"{tmp_path}/report.json", replicates=20
    )
    made = Setting(
        tmp_path, config, rows, {name: card.model_id for name, card in cards.items()}, faces.digest
    )
    made.embed()
    return made


def test_a_dry_run_says_what_is_scored_and_writes_nothing(setting: Setting) -> None:
    before = sorted(setting.folder.rglob("*"))
    said = plan(setting.config)
    assert said["embeddings"] == f"{PEOPLE * EACH} in {setting.folder}/trained"
    assert (said["identities"], said["of"]) == (f"{PEOPLE - TRAINED} unseen", "trained, untrained, pixels")
    assert sorted(setting.folder.rglob("*")) == before


def check(report: dict[str, Any], config: EvaluateConfig) -> None:
    """What is on disk is what was given, and is described by the schema."""
    assert storage.read_json(config.out) == report
    described = json.loads(files("facerec.evaluation").joinpath("report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(described)
    jsonschema.Draft202012Validator(described).validate(report)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(described).validate(report | {"surprise": 1})


@pytest.mark.usefixtures("ray_local")
def test_ideal_vectors_score_perfectly_everywhere_and_random_ones_by_chance(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauges = gauges_of(monkeypatch, "evaluate")
    report = evaluate(setting.config)
    check(report, setting.config)
    assert gauges == documented("evaluate")
    unseen = PEOPLE - TRAINED
    trained, untrained = (report["identification"][name] for name in ("trained", "untrained"))
    assert trained["accuracy"] == trained["nearest_neighbour"]["accuracy"] == 1.0
    assert trained["rejection"]["svm"]["open_set"]["accuracy"] == 1.0
    assert report["verification"]["trained"]["equal_error_rate"] == 0.0
    assert report["clustering"]["trained"]["bcubed"]["f"] == 1.0
    assert report["clustering"]["trained"]["faces"] == unseen * EACH
    assert untrained["interval"][0] <= 1 / unseen <= untrained["interval"][1]
    low, high = report["verification"]["untrained"]["equal_error_interval"]
    assert low <= 0.5 <= high
    assert report["chosen_on"]["clustering_parameters"].startswith("training people")
    assert report["leakage"]["people_by_name"] == report["leakage"]["people_by_photograph"] == 0
    svm = load_svm(storage.read_bytes(f"{setting.folder}/svm.skops"))
    assert svm.predict(np.eye(PEOPLE, 128)[TRAINED:]).tolist() == trained["people"]


@pytest.mark.usefixtures("ray_local")
def test_planted_leaks_are_found_and_left_out(setting: Setting) -> None:
    """Two people were trained on: one spelled differently, one whose photograph is there under another name."""
    rows = setting.rows
    spelled, copied = (rows.identities.index(f"person-{at:03d}") for at in (TRAINED, TRAINED + 1))
    rows.identities[spelled : spelled + EACH] = ["Person 000"] * EACH
    rows.hashes[copied] = rows.hashes[0] ^ 0b101
    setting.embed()
    record = storage.read_json(f"{setting.config.run}/run.json")
    record["split"]["unseen"] = [*record["split"]["unseen"][1:], "Person 000"]
    storage.write_json(f"{setting.config.run}/run.json", record)
    report = evaluate(setting.config)
    check(report, setting.config)
    assert report["leakage"]["by_name"] == [{"scored": "Person 000", "seen": "person-000"}]
    assert report["leakage"]["by_photograph"] == [{"scored": "person-005", "seen": "person-000"}]
    assert not {"Person 000", "person-005"} & set(report["unseen_people"])
    assert len(report["unseen_people"]) == PEOPLE - TRAINED - 2


@pytest.mark.usefixtures("ray_local")
def test_everybody_in_embeddings_is_scored_without_a_run(setting: Setting) -> None:
    config = replace(setting.config, run=None, faces=None, control=None, people="all")
    report = evaluate(config)
    check(report, config)
    assert len(report["unseen_people"]) == PEOPLE
    assert report["leakage"] == {
        "checked": False,
        "reason": "no --run was named, so nobody knows whom the network has seen",
    }
    assert report["clustering"]["trained"]["people"] == PEOPLE - 2
    assert list(report["identification"]) == ["trained"]


@pytest.mark.usefixtures("ray_local")
def test_an_svm_is_used_with_its_own_report_alone(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the SVM of another network's vectors was written, and before its report was."""
    config = replace(setting.config, run=None, faces=None, control=None, people="all")
    report = evaluate(config)
    assert report["svm"]["model_id"] == setting.cards["model"]
    FittedSvm.read(config.out)
    _, person = np.unique([uri.split("/")[-2] for uri in setting.rows.uris], return_inverse=True)
    vectors, other = np.roll(np.eye(128), 9, axis=1)[person], setting.cards["untrained"]
    write_embeddings(setting.folder / "trained", setting.rows, vectors, other, setting.digest)
    with lock.exclusive(str(setting.folder), "--out"), pytest.raises(BusyError, match="--out"):
        evaluate(config)
    with monkeypatch.context() as killed:
        killed.setattr(Fence, "write_json", _kill)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config)
    with pytest.raises(MismatchError, match=r"svm\.skops is not the SVM of .*run jobs/evaluate\.py again"):
        FittedSvm.read(config.out)
    evaluate(config)
    assert FittedSvm.read(config.out).model_id == other


def _kill(*_: object) -> None:
    raise KeyboardInterrupt


PAIRS = [
    "2\t2",
    "A\t1\t2",
    "B\t1\t2",
    "A\t1\tC\t1",
    "B\t1\tD\t1",
    "C\t1\t2",
    "D\t1\t3",
    "C\t1\tA\t2",
    "D\t1\tB\t1",
]


def lfw(setting: Setting) -> EvaluateConfig:
    """Embeddings of other people, by the run's network; D's third photograph has no face."""
    taken = [(name, number) for name in "ABCD" for number in (1, 2)]
    uris = [f"/lfw/{name}/{name}_{number:04d}.jpg" for name, number in taken]
    hashes = np.random.default_rng(9).integers(0, 2**62, len(taken)).tolist()
    setting.rows, setting.digest = Rows([name for name, _ in taken], uris, hashes), "lfw"
    setting.embed()
    (setting.folder / "pairs.txt").write_text("\n".join(PAIRS))
    return replace(setting.config, pairs=f"{setting.folder}/pairs.txt", faces=None)


@pytest.mark.usefixtures("ray_local")
def test_given_pairs_are_all_accounted_for(setting: Setting) -> None:
    config = lfw(setting)
    report = evaluate(config)
    check(report, config)
    assert report["pairs"]["listed"] == report["pairs"]["scored"] == 8
    assert report["pairs"]["photographs_without_face"] == 1
    trained = report["verification"]["trained"]
    assert trained["genuine_pairs"] + trained["impostor_pairs"] == 8
    assert trained["genuine_without_face"] == 1
    assert [fold["accuracy"] for fold in trained["accuracy"]["folds"]] == [1.0, 0.75]
    assert report["leakage"]["checked"]


@pytest.mark.usefixtures("ray_local")
def test_pairs_of_people_trained_on_are_excluded_and_counted(setting: Setting) -> None:
    config = lfw(setting)
    record = storage.read_json(f"{config.run}/run.json")
    record["split"]["train"].append("a")
    storage.write_json(f"{config.run}/run.json", record)
    report = evaluate(config)
    assert report["pairs"]["excluded_for_leakage"] == 3
    assert report["pairs"]["scored"] == 5
    reported = evaluate(replace(config, leakage="report"))
    assert (reported["pairs"]["excluded_for_leakage"], reported["pairs"]["scored"]) == (0, 8)
    assert reported["leakage"]["people_by_name"] == 1


def test_a_control_without_the_trained_vectors_mirrored_faces_is_refused(
    setting: Setting, tmp_path: Path
) -> None:
    control = Path(shutil.copytree(str(setting.config.control), tmp_path / "flipped"))
    manifest = storage.read_json(f"{control}/manifest.json")
    storage.write_json(f"{control}/manifest.json", manifest | {"flip": True})
    with pytest.raises(MismatchError, match=r"with --flip.*--control"):
        evaluate(replace(setting.config, control=str(control)))


def test_vectors_of_another_run_are_refused(setting: Setting) -> None:
    swapped = replace(setting.config, embeddings=setting.config.control, control=setting.config.embeddings)
    with pytest.raises(MismatchError, match="--embeddings"):
        evaluate(swapped)


def test_unseen_people_that_are_not_there_are_one_line(setting: Setting) -> None:
    record = storage.read_json(f"{setting.config.run}/run.json")
    record["split"]["unseen"] = ["nobody"]
    storage.write_json(f"{setting.config.run}/run.json", record)
    with pytest.raises(SourceError, match="none of the run's 1 unseen people"):
        evaluate(setting.config)


def test_people_who_were_all_trained_on_are_refused(setting: Setting) -> None:
    record = storage.read_json(f"{setting.config.run}/run.json")
    record["split"]["train"] = record["split"]["unseen"]
    storage.write_json(f"{setting.config.run}/run.json", record)
    with pytest.raises(SourceError, match=r"all 6 people .*--leakage report"):
        evaluate(setting.config)


def test_faces_without_names_are_one_line(setting: Setting) -> None:
    vectors = np.eye(128)[: len(setting.rows.uris)]
    nameless = Rows([None] * len(vectors), setting.rows.uris, setting.rows.hashes)  # type: ignore[list-item]
    write_embeddings(setting.folder / "nameless", nameless, vectors, "m", "d")
    with pytest.raises(SourceError, match=r"no face .* has an identity"):
        evaluate(EvaluateConfig(embeddings=f"{setting.folder}/nameless", people="all"))


def test_faces_trained_on_that_are_gone_or_others_are_one_line(setting: Setting) -> None:
    config = lfw(setting)
    record = storage.read_json(f"{config.run}/run.json")
    record["faces"] |= {"folder": f"{setting.folder}/gone"}
    storage.write_json(f"{config.run}/run.json", record)
    with pytest.raises(DatasetError, match="--trained_faces"):
        evaluate(config)
    record["faces"] |= {"folder": f"{setting.folder}/faces", "digest": "another"}
    storage.write_json(f"{config.run}/run.json", record)
    with pytest.raises(MismatchError, match="--trained_faces"):
        evaluate(config)


@pytest.mark.parametrize(
    "flag, value", [("strangers", -1), ("strangers", 2.5), ("svm_people", 1), ("replicates", 3)]
)
def test_a_senseless_flag_is_one_line(flag: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{flag}"):
        EvaluateConfig(**{flag: value})
