"""Identification: ideal embeddings score perfectly, random ones by chance, and no photograph stands on both sides."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import SVC

from facerec.errors import DatasetError
from facerec.evaluation import identification
from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.identification import Enrolment, calibration_error, enrol, identify
from facerec.evaluation.leakage import photographs_of_people
from facerec.svm import load_svm, save_svm

PEOPLE = np.repeat([f"person {i}" for i in range(8)], 12)


WHOLE_GRID = identification.KERNELS


@pytest.fixture(autouse=True)
def _small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that are not about the search choose between two values of C."""
    choice = {
        "svm__estimator__kernel": ["rbf"],
        "svm__estimator__C": [1.0, 10.0],
    }  # of one-vs-rest, the default
    monkeypatch.setattr(identification, "KERNELS", [choice])


def different(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count)


def enrolment(identities: np.ndarray = PEOPLE, hashes: np.ndarray | None = None, **flags: Any) -> Enrolment:
    hashes = different(len(identities)) if hashes is None else hashes
    photographs = photographs_of_people(identities, hashes)
    return enrol(identities, photographs, EvaluateConfig(**flags), set())


def noisy(identities: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    _, person = np.unique(identities, return_inverse=True)
    rows = rng.normal(size=(person.max() + 1, 32))[person] + noise * rng.normal(size=(len(person), 32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_an_ideal_embedder_scores_perfectly_everywhere() -> None:
    vectors = np.repeat(np.eye(8, 16, dtype=np.float32), 12, axis=0)
    result, model = identify(vectors, enrolment(), 0)
    assert result["accuracy"] == 1.0
    assert result["nearest_neighbour"]["accuracy"] == result["nearest_centroid"]["accuracy"] == 1.0
    assert result["confusion"] == [[person, person, 6] for person in range(8)]
    assert result["svm"]["nested"]["mean"] == 1.0
    assert result["svm"]["calibration"]["expected_calibration_error"] < 0.05
    for method in ("svm", "nearest_neighbour", "nearest_centroid"):
        assert result["rejection"][method]["area_under_roc"] == 1.0
        assert result["rejection"][method]["open_set"]["accuracy"] == 1.0
    assert load_svm(save_svm(model)).predict(vectors).tolist() == PEOPLE.tolist()


def test_a_random_embedder_scores_chance_within_its_interval() -> None:
    vectors = np.random.default_rng(3).normal(size=(96, 128)).astype(np.float32)
    result, _ = identify(vectors, enrolment(), 0)
    for scores in (result, result["nearest_neighbour"], result["nearest_centroid"]):
        assert scores["interval"][0] <= 1 / 8 <= scores["interval"][1]
    for method in ("svm", "nearest_neighbour", "nearest_centroid"):
        assert abs(result["rejection"][method]["area_under_roc"] - 0.5) < 0.25


def test_the_numbers_agree_with_scikit_learn() -> None:
    vectors, enrolled = noisy(PEOPLE, 2.5), enrolment()
    result, model = identify(vectors, enrolled, 0)
    truth, said = PEOPLE[enrolled.test], model.predict(vectors[enrolled.test])
    dense = np.zeros((8, 8), int)
    for who, whom, count in result["confusion"]:
        dense[who, whom] = count
    assert dense.tolist() == confusion_matrix(truth, said, labels=result["people"]).tolist()
    assert 0 < result["hits"] == np.trace(dense) < result["test_faces"] == 48
    oracle = NearestCentroid().fit(vectors[enrolled.train], PEOPLE[enrolled.train])
    score = oracle.score(vectors[enrolled.test], truth)
    assert abs(result["nearest_centroid"]["accuracy"] - score) < 1e-9
    table = {row["identity"]: row for row in result["per_identity"]}
    for at, name in enumerate(result["people"]):
        assert (table[name]["hits"], table[name]["test_faces"]) == (dense[at, at], dense[at].sum())
        others = dense[at] * (np.arange(8) != at)
        assert (table[name]["taken_for"] is None) == (others.sum() == 0)


def test_everybody_is_halved_and_no_photograph_is_on_both_sides() -> None:
    enrolled = enrolment()
    assert sorted([*enrolled.train, *enrolled.test]) == list(range(96))
    for side in (enrolled.train, enrolled.test):
        assert np.unique(PEOPLE[side], return_counts=True)[1].tolist() == [6] * 8


def test_a_planted_leak_stays_on_one_side_and_in_one_fold() -> None:
    """Every photograph stands there twice, a bit apart: a split by rows would put copies on both sides."""
    hashes = np.repeat(different(48), 2) ^ np.tile([0, 1], 48)
    enrolled = enrolment(hashes=hashes)
    assert not set(hashes[enrolled.train] >> 1) & set(hashes[enrolled.test] >> 1)
    for fit, held in identification._folds(enrolled, enrolled.train, 0):
        assert not set(hashes[fit] >> 1) & set(hashes[held] >> 1)
    vectors = np.repeat(np.random.default_rng(5).normal(size=(48, 64)), 2, axis=0).astype(np.float32)
    result, _ = identify(vectors, enrolled, 0)
    leaky, _ = identify(vectors, enrolment(), 0)  # as if all photographs were different
    assert leaky["accuracy"] > 0.45 > 0.35 > max(result["accuracy"], result["svm"]["nested"]["mean"])


def test_someone_with_one_photograph_many_times_is_left_out() -> None:
    hashes = different(96)
    hashes[:12] = hashes[0]
    enrolled = enrolment(hashes=hashes)
    assert "person 0" not in PEOPLE[np.r_[enrolled.train, enrolled.test]]


def test_someone_with_one_training_photograph_is_fitted_on_and_the_rest_is_refused_with_the_reason() -> None:
    identities = np.array([*PEOPLE, "twice", "twice"])
    result, model = identify(noisy(identities, 0.1), enrolment(identities), 0)
    assert "twice" in model.classes_
    assert result["accuracy"] == 1.0
    refused = result["svm"]["calibration"]["refused"]
    assert "1 people have one training photograph" in refused
    assert "twice" not in refused  # a name in a sentence would be no record that erasure can read
    pairs = np.repeat(list("abcdef"), 2)
    result, _ = identify(noisy(pairs, 0.1), enrolment(pairs), 0)
    assert "refused" in result["svm"]["nested"]
    assert result["accuracy"] == 1.0


def test_the_search_chooses_by_cross_validation_what_the_vectors_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One direction tells people apart and is drowned by the others unless they are scaled."""
    monkeypatch.setattr(identification, "KERNELS", WHOLE_GRID)
    identities = np.repeat(list("abcd"), 20)
    vectors = np.random.default_rng(0).normal(size=(80, 6))
    vectors[:, 0] = 1e-3 * (np.unique(identities, return_inverse=True)[1] - 1.5)
    result, _ = identify(vectors.astype(np.float32), enrolment(identities), 0)
    assert result["svm"]["scaling"] == "standard"
    assert result["accuracy"] > 0.5 > 2 / 5 > result["nearest_neighbour"]["accuracy"]


@pytest.mark.usefixtures("ray_local")
def test_the_cluster_chooses_what_one_core_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identification, "PARALLEL_FACES", 24)
    vectors, enrolled = noisy(PEOPLE, 2.5), enrolment()
    alone, together = (identify(vectors, enrolled, 0, cores)[0] for cores in (1, 2))
    assert together == alone


def test_strangers_are_never_shown_to_their_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    enrolled, shown = enrolment(), []
    original = identification.Svm.fit
    monkeypatch.setattr(
        identification.Svm,
        "fit",
        lambda self, vectors, enrolled, train: (
            shown.append(set(enrolled.identities[train])) or original(self, vectors, enrolled, train)
        ),
    )
    result, _ = identify(noisy(PEOPLE, 0.3), enrolled, 0)
    assert len(enrolled.strangers) == 2
    assert all(not people & enrolled.strangers for people in shown)
    assert sorted(result["rejection"]["strangers"]) == sorted(enrolled.strangers)
    assert result["rejection"]["stranger_faces"] == 24


def test_many_people_are_told_apart_by_a_linear_svm_on_a_stated_subset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identification, "KERNEL_LIMIT", 4)
    result, model = identify(noisy(PEOPLE, 0.2), enrolment(svm_people=6), 0)
    assert (result["svm"]["people"], result["svm"]["people_of"]) == (6, 8)
    assert result["svm"]["kernel"] == "linear"
    assert len(model.classes_) == len(result["people"]) == 6
    assert result["nearest_neighbour"]["faces"] == 48


def test_a_chosen_one_vs_one_machine_still_rejects_by_margins_against_the_rest() -> None:
    svm = identification.Svm(Pipeline([("scale", Normalizer()), ("svm", SVC(C=7.0))]), {}, 0)
    rest = svm.one_vs_rest().pipeline[-1]
    assert (type(rest), rest.estimator.C) == (OneVsRestClassifier, 7.0)
    fitted = svm.one_vs_rest().fit(noisy(PEOPLE, 0.3), enrolment(), np.arange(96))
    assert (fitted.decision_function(np.zeros((1, 32), np.float32) + 0.01).max() < 0).all()


def test_calibration_error_is_confidence_less_accuracy() -> None:
    right = np.random.default_rng(0).random(10) < 0.5
    assert abs(calibration_error(np.full(10, 0.9), right) - abs(0.9 - right.mean())) < 1e-9
    assert calibration_error(np.ones(5), np.ones(5, bool)) == 0.0


class Hostile:
    """What a foreign file would like to run."""

    def __reduce__(self) -> Any:
        return (print, ("executed",))


def test_a_hostile_svm_file_is_refused_and_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    archive = io.BytesIO()
    schema = {
        "__class__": "system", "__module__": "posix", "__loader__": "ObjectNode", "__id__": 1,
        "content": {"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode", "content": '"x"', "__id__": 2},
        "protocol": 3, "_skops_version": "0.16.0",
    }  # fmt: skip
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("schema.json", json.dumps(schema))
    for data in (archive.getvalue(), save_svm(Hostile()), b"no archive", b""):
        with pytest.raises(DatasetError, match="not an SVM that evaluation saved"):
            load_svm(data)
    assert "executed" not in capsys.readouterr().out
