"""Who is it: an SVM over vectors of people the network never saw, fitted on half their photographs.

Near-duplicate photographs stay on one side and in one fold, and scaling, kernel and C are chosen inside the training
half: either leak would flatter any network, the untrained one most of all. Nearest neighbour and nearest centroid stand
beside it, which choose nothing.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from facerec import scores, seeding
from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.gallery import whole_people
from facerec.evaluation.rejection import Answers, judge
from facerec.scores import Floats
from facerec.svm import by_margin

KERNEL_LIMIT = 100
"""Above so many people the SVM is linear: kernels cost faces squared for each of them."""
SEARCH_FACES = 600
"""Training faces that scaling, kernel and C are searched on, at most: whole people, seeded."""
PARALLEL_FACES = 300
"""From so many on, the search is dealt to the cluster's cores; below, that takes longer than the search."""
FOLDS = 3
SCALINGS = [Normalizer(), StandardScaler()]
"""Unit length (as embeddings have it already), or each number by itself. Raw pixels would keep libsvm busy for hours."""
KERNELS = [
    {"scale": SCALINGS, "svm": [form], f"svm__{inside}C": [0.1, 1.0, 10.0, 100.0]}
    for form, inside in ((SVC(), ""), (OneVsRestClassifier(SVC()), "estimator__"))
] + [
    {"scale": SCALINGS[:1], "svm": [SVC(kernel="linear")], "svm__C": [0.1, 1.0, 10.0]},
    {"scale": SCALINGS[1:], "svm": [SVC(kernel="linear")], "svm__C": [0.001, 0.01, 0.1]},
]
"""RBF, one-vs-one and one-vs-rest, and linear: which does better depends on the vectors, and on how many there are."""
LINEAR = [
    {"scale": SCALINGS[:1], "svm__C": [0.1, 1.0, 10.0]},
    {"scale": SCALINGS[1:], "svm__C": [0.001, 0.01, 0.1]},
]

Strings = NDArray[np.str_]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Enrolment:
    """Who is told apart from whom; row numbers are of the scored faces [n]."""

    identities: Strings
    photographs: I64
    """A near-duplicate group's number, unlike any other person's [n]."""
    train: I64
    test: I64
    strangers: frozenset[str]
    """People whom a recogniser of the others has to reject."""
    svm_people: frozenset[str]
    """People whom the SVM tells apart."""

    def rows(self, side: I64, people: frozenset[str] | set[str]) -> I64:
        """A side's rows of these people."""
        return side[np.isin(self.identities[side], sorted(people))]


def halves(identities: Strings, photographs: I64, seed: int) -> tuple[I64, I64]:
    """Half of each person's photographs on each side, groups of near-duplicates whole.

    People whose photographs are all one group cannot be scored and are on neither side.
    """
    sides: dict[bool, list[int]] = {True: [], False: []}
    order = np.argsort(identities, kind="stable")
    names, starts = np.unique(identities[order], return_index=True)
    for name, rows in zip(names.tolist(), np.split(order, starts[1:]), strict=True):
        groups = [rows[photographs[rows] == group] for group in np.unique(photographs[rows])]
        if len(groups) < 2:
            continue
        taken = 0
        for rank, group in enumerate(seeding.generator("halves", seed, name).permutation(len(groups))):
            left = taken < len(rows) / 2 and rank < len(groups) - 1
            sides[left] += groups[group].tolist()
            taken += len(groups[group]) if left else 0
    return np.array(sorted(sides[True]), np.int64), np.array(sorted(sides[False]), np.int64)


def enrol(identities: Strings, photographs: I64, config: EvaluateConfig, seen: set[str]) -> Enrolment:
    """Halves, strangers and the SVM's people; at least two people stay known, and people the network has ``seen`` are
    strangers last."""
    seed, strangers = config.seed, config.strangers
    train, test = halves(identities, photographs, seed)
    people = sorted(set(identities[train].tolist()), key=lambda name: seeding.derive("strangers", seed, name))
    count = min(round(strangers * len(people)) if strangers < 1 else int(strangers), max(len(people) - 2, 0))
    outside = sorted(people, key=lambda name: name in seen)[:count]
    chosen = sorted(people, key=lambda name: seeding.derive("svm people", seed, name))[: config.svm_people]
    return Enrolment(identities, photographs, train, test, frozenset(outside), frozenset(chosen))


def identify(vectors: Floats, enrolled: Enrolment, seed: int, cores: int = 1) -> tuple[dict[str, Any], Any]:
    """Fit on one half, score the other: the numbers, and the fitted classifier. ``cores`` of a Ray cluster share the search."""
    everybody = enrolled.svm_people
    train, test = (enrolled.rows(side, everybody) for side in (enrolled.train, enrolled.test))
    svm = Svm.search(vectors, enrolled, train, seed, cores)
    model, calibration = svm.calibrated(vectors, enrolled, train, test)
    said = model.predict(vectors[test])
    hits = said == enrolled.identities[test]
    return {
        **scores.proportion(int(hits.sum()), len(test)),
        "train_faces": len(train),
        "test_faces": len(test),
        **_who_is_taken_for_whom(enrolled, train, test, said),
        "svm": svm.about
        | {
            "people": len(everybody),
            "people_of": len(set(enrolled.identities[enrolled.train].tolist())),
            "calibration": calibration,
        },
        "nearest_neighbour": nearest_neighbour(vectors, enrolled),
        "nearest_centroid": _proportion(_nearest_centroid(vectors, enrolled, enrolled.train, enrolled.test)),
        "rejection": _reject(vectors, enrolled, svm, seed),
    }, model


@dataclass(frozen=True)
class Svm:
    """A kind of SVM, chosen."""

    pipeline: Pipeline
    """Unfitted."""
    about: dict[str, Any]
    """What was chosen and how well that does, for the report."""
    seed: int

    @classmethod
    def search(cls, vectors: Floats, enrolled: Enrolment, train: I64, seed: int, cores: int) -> Svm:
        """Nested cross-validation: the inner search chooses, the outer folds say what such a choice is worth."""
        kernel = len(enrolled.svm_people) <= KERNEL_LIMIT
        machine = SVC(kernel="rbf", C=10.0) if kernel else LinearSVC(C=0.01, tol=1e-2, random_state=seed)
        pipeline = Pipeline(
            [("scale", StandardScaler()), ("svm", OneVsRestClassifier(machine) if kernel else machine)]
        )
        random = seeding.generator("search", seed)
        rows = train[whole_people(enrolled.identities[train], SEARCH_FACES, random)]
        about: dict[str, Any] = {
            "search_faces": len(rows),
            "search_people": len(set(enrolled.identities[rows].tolist())),
        }
        folds = _folds(enrolled, rows, seed)
        if not folds:
            reason = "nobody but one person has two different training photographs"
            return cls(pipeline, about | {"nested": {"refused": reason}} | _said(pipeline), seed)
        parts = [*(fit for fit, _ in folds), rows]
        with _on(min(cores, len(parts)) if len(rows) >= PARALLEL_FACES else 1):
            *chosen, best = joblib.Parallel()(
                joblib.delayed(_choose)(
                    pipeline,
                    KERNELS if kernel else LINEAR,
                    vectors[part],
                    enrolled.identities[part],
                    _positions(part, _folds(enrolled, part, seed)),
                )
                for part in parts
            )
        outer = []
        for kind, (fit, held) in zip(chosen, folds, strict=True):
            kind.fit(vectors[fit], enrolled.identities[fit])
            accuracy = float(kind.score(vectors[held], enrolled.identities[held]))
            outer.append({"accuracy": accuracy} | _said(kind))
        values = [fold["accuracy"] for fold in outer]
        nested = {
            "mean": float(np.mean(values)),
            "standard_deviation": float(np.std(values, ddof=1)),
            "folds": outer,
        }
        return cls(best, about | {"nested": nested} | _said(best), seed)

    def fit(self, vectors: Floats, enrolled: Enrolment, train: I64) -> Pipeline:
        """The SVM of these rows."""
        fresh: Pipeline = clone(self.pipeline)
        return fresh.fit(vectors[train], enrolled.identities[train])

    def one_vs_rest(self) -> Svm:
        """The same with every person against the rest, so that it can also say that it is nobody: one-vs-one, as SVC is by
        itself, counts who wins most duels, and somebody always does."""
        if not isinstance(self.pipeline[-1], SVC):
            return self
        pipeline = clone(self.pipeline).set_params(svm=OneVsRestClassifier(self.pipeline[-1]))
        return replace(self, pipeline=pipeline)

    def calibrated(
        self, vectors: Floats, enrolled: Enrolment, train: I64, test: I64
    ) -> tuple[Any, dict[str, Any]]:
        """The SVM with probabilities: margins of faces that it was not fitted on are divided by the one temperature under
        which they are most likely. Without, where somebody has a single training photograph."""
        identities = enrolled.identities
        alone = _with_one_photograph(enrolled, train)
        if alone:
            reason = f"{len(alone)} people have one training photograph; a fold without it does not know them"
            return self.fit(vectors, enrolled, train), {"refused": reason}
        model = CalibratedClassifierCV(
            self.pipeline,
            method="temperature",
            ensemble=False,
            cv=_positions(train, _folds(enrolled, train, self.seed)),
        )
        model.fit(vectors[train], identities[train])
        probabilities = model.predict_proba(vectors[test])
        return model, {
            "temperature": float(1 / model.calibrated_classifiers_[0].calibrators[0].beta_),
            "log_loss": float(log_loss(identities[test], probabilities, labels=model.classes_)),
            "expected_calibration_error": calibration_error(
                probabilities.max(axis=1), model.classes_[probabilities.argmax(axis=1)] == identities[test]
            ),
        }


def calibration_error(confidence: Floats, right: NDArray[np.bool_], bins: int = 15) -> float:
    """Mean distance of confidence [n] from the share that is right, over even bins of confidence (Guo et al., 2017)."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, confidence, bins) - np.bincount(place, right, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _choose(
    pipeline: Pipeline,
    grid: list[dict[str, Any]],
    vectors: Floats,
    identities: Strings,
    folds: list[tuple[I64, I64]],
) -> Pipeline:
    """The pipeline with the parameters of the best mean accuracy over the folds, unfitted; as it is, without folds."""
    if not folds:
        return clone(pipeline)
    search = GridSearchCV(pipeline, grid, cv=folds, refit=False).fit(vectors, identities)
    best: Pipeline = clone(pipeline).set_params(**search.best_params_)
    return best


def _folds(enrolled: Enrolment, rows: I64, seed: int) -> list[tuple[I64, I64]]:
    """Row numbers to fit on and to look at: stratified, near-duplicates together, as many folds as everybody has photographs.

    Who has one photograph is always fitted on and never looked at. None where fewer than two people have two.
    """
    alone = np.isin(enrolled.identities[rows], _with_one_photograph(enrolled, rows))
    several, single = rows[~alone], rows[alone]
    names, counts = _photographs_of(enrolled, several)
    if len(names) < 2:
        return []
    split = StratifiedGroupKFold(min(FOLDS, int(counts.min())), shuffle=True, random_state=seed % 2**32)
    sides = split.split(several, enrolled.identities[several], enrolled.photographs[several])
    return [(np.concatenate([several[fit], single]), several[held]) for fit, held in sides]


def _positions(rows: I64, folds: list[tuple[I64, I64]]) -> list[tuple[I64, I64]]:
    """Row numbers as places within ``rows``."""
    place = np.zeros(rows.max() + 1, np.int64)
    place[rows] = np.arange(len(rows))
    return [(place[fit], place[held]) for fit, held in folds]


def _photographs_of(enrolled: Enrolment, rows: I64) -> tuple[Strings, I64]:
    """Names, and how many different photographs each has in these rows."""
    first = np.unique(enrolled.photographs[rows], return_index=True)[1]
    names, counts = np.unique(enrolled.identities[rows][first], return_counts=True)
    return names, counts


def _with_one_photograph(enrolled: Enrolment, rows: I64) -> list[str]:
    names, counts = _photographs_of(enrolled, rows)
    return [str(name) for name in names[counts == 1]]


def _said(pipeline: Pipeline) -> dict[str, Any]:
    """What was chosen, in words."""
    machine = getattr(pipeline[-1], "estimator", pipeline[-1])
    return {
        "form": "one-vs-one" if isinstance(pipeline[-1], SVC) else "one-vs-rest",
        "scaling": "standard" if isinstance(pipeline[0], StandardScaler) else "unit length",
        "kernel": getattr(machine, "kernel", "linear"),
        "c": float(machine.C),
    }


def _on(cores: int) -> contextlib.AbstractContextManager[Any]:
    """Where joblib runs the searches: on the Ray cluster where that pays, else here."""
    if cores < 2:
        return contextlib.nullcontext()
    from ray.util.joblib import register_ray

    logging.getLogger("ray.util.multiprocessing.pool").setLevel(
        logging.ERROR
    )  # joblib passes what it ignores
    register_ray()  # type: ignore[no-untyped-call]
    there: contextlib.AbstractContextManager[Any] = joblib.parallel_config(backend="ray", n_jobs=cores)
    return there


def _who_is_taken_for_whom(enrolled: Enrolment, train: I64, test: I64, said: Strings) -> dict[str, Any]:
    """The confusion as [truth, answer, faces] of places in ``people``, which stays small for many people; and a row a person."""
    names, truth = np.unique(enrolled.identities[test], return_inverse=True)
    answer = np.searchsorted(names, said)
    cells, counts = np.unique(truth * len(names) + answer, return_counts=True)
    triples = [
        [int(cell) // len(names), int(cell) % len(names), int(count)]
        for cell, count in zip(cells, counts, strict=True)
    ]
    wrong: dict[int, tuple[int, int]] = {}
    for who, whom, count in triples:
        if who != whom:
            wrong[who] = max(wrong.get(who, (0, 0)), (count, whom))
    fitted = dict(zip(*np.unique(enrolled.identities[train], return_counts=True), strict=True))
    tested, hits = np.bincount(truth), np.bincount(truth[truth == answer], minlength=len(names))
    table = [
        {
            "identity": name,
            "train_faces": int(fitted[name]),
            "test_faces": int(tested[at]),
            "hits": int(hits[at]),
            "taken_for": str(names[wrong[at][1]]) if at in wrong else None,
        }
        for at, name in enumerate(names.tolist())
    ]
    return {"people": names.tolist(), "confusion": triples, "per_identity": table}


def nearest_neighbour(vectors: Floats, enrolled: Enrolment) -> dict[str, Any]:
    """How many of the test half's faces have their nearest of the other half in their own person."""
    return _proportion(_nearest_neighbour(vectors, enrolled, enrolled.train, enrolled.test))


def _nearest_neighbour(vectors: Floats, enrolled: Enrolment, train: I64, probes: I64) -> Answers:
    place, distance = scores.nearest(vectors[probes], vectors[train])
    return _answers(enrolled, probes, enrolled.identities[train][place], -distance)


def _nearest_centroid(vectors: Floats, enrolled: Enrolment, train: I64, probes: I64) -> Answers:
    names, person, faces = np.unique(enrolled.identities[train], return_inverse=True, return_counts=True)
    centroids = np.zeros((len(names), vectors.shape[1]))
    np.add.at(centroids, person, vectors[train])
    place, distance = scores.nearest(vectors[probes], centroids / faces[:, None])
    return _answers(enrolled, probes, names[place], -distance)


def _by_margin(model: Pipeline, vectors: Floats, enrolled: Enrolment, probes: I64) -> Answers:
    """How sure the SVM is: the largest margin of anybody against the rest."""
    return _answers(enrolled, probes, *by_margin(model, vectors[probes]))


def _answers(enrolled: Enrolment, probes: I64, said: Strings, sureness: Floats) -> Answers:
    truth = enrolled.identities[probes]
    return Answers(sureness, said == truth, truth)


def _proportion(answers: Answers) -> dict[str, Any]:
    return scores.proportion(int(answers.right.sum()), len(answers.right))


def _reject(vectors: Floats, enrolled: Enrolment, svm: Svm, seed: int) -> dict[str, Any]:
    """Recognisers that were never shown the strangers, on known people's other half and all of the strangers' faces."""
    known = set(enrolled.identities[enrolled.train].tolist()) - enrolled.strangers
    outside = np.flatnonzero(np.isin(enrolled.identities, sorted(enrolled.strangers)))
    about = {
        "known_people": len(known),
        "strangers": sorted(enrolled.strangers),
        "stranger_faces": len(outside),
    }
    if len(enrolled.strangers) < 2:
        return {
            **about,
            "refused": f"{len(enrolled.strangers)} strangers among {len(known)} people; two are needed, as thresholds come from others (--strangers)",
        }
    few = frozenset(enrolled.svm_people - enrolled.strangers)
    results: dict[str, Any] = {}
    if len(few) >= 2:
        fitted = svm.one_vs_rest().fit(vectors, enrolled, enrolled.rows(enrolled.train, few))
        known_probes = enrolled.rows(enrolled.test, few)
        known_answers, answers = (
            _by_margin(fitted, vectors, enrolled, probes) for probes in (known_probes, outside)
        )
        results["svm"] = judge(known_answers, answers, seed) | {"known_people": len(few)}
    else:
        results["svm"] = {"refused": f"{len(few)} of the SVM's people are known; two are needed"}
    train, test = (enrolled.rows(side, known) for side in (enrolled.train, enrolled.test))
    for name, answer in (("nearest_neighbour", _nearest_neighbour), ("nearest_centroid", _nearest_centroid)):
        known_answers, answers = (answer(vectors, enrolled, train, probes) for probes in (test, outside))
        results[name] = judge(known_answers, answers, seed)
    return about | results
