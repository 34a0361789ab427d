"""Names for faces: nearest neighbour or SVM, and nobody's name where strangers would be as sure.

A false alarm is a stranger who is given a name. The score that a face must exceed is the lowest one that at most the
stated share of strangers' faces exceed, and the strangers are said:

- ``--strangers``: published faces of people who are not enrolled. Faces whose name is enrolled are left out. People
  whom the network was trained on lie further from everybody than people it never saw: they make bad strangers.
- without it, the gallery itself: each person is kept out in turn, and every face of theirs is a stranger's to all the
  others. An SVM keeps no faces, so it needs ``--strangers``, and so does a gallery of one person.

Few faces carry no rate, as one photograph of each of five people. Then the user names strangers, or chooses the score by
``--threshold``; the manifest says that no rate was measured.

The rate is one of these strangers: others, photographed otherwise, raise more alarms or fewer. It rests on people
more than on faces, and on people the network never saw: with a gallery of 14, most of them trained on, 10 of 80 faces
of other strangers were above a threshold of 5 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from facerec import publish, schema, scores, storage
from facerec.errors import ConfigError, DatasetError, MismatchError, SourceError
from facerec.naming.recognisers import FittedSvm, Gallery, Recogniser, require_enough

KEPT = ["face_id", "source_uri", "box"]


@dataclass(frozen=True, kw_only=True)
class IdentifyConfig:
    """Embeddings to names: whose each face is, or that it is nobody's who is known."""

    embeddings: str = "embeddings"
    """Vectors of the faces to name, as jobs/embed.py leaves them."""
    gallery: str | None = None
    """Vectors of enrolled people (photographs in a folder a person, aligned and embedded by the same model)."""
    report: str | None = None
    """Instead of a gallery: the report.json of jobs/evaluate.py, whose SVM (svm.skops beside it) gives the names."""
    strangers: str | None = None
    """Vectors of people who are not enrolled, to count false alarms on; without it the gallery, each person kept out in turn."""
    false_alarms: float = 0.01
    """Share of strangers' faces that may be given a name (above 0, below 1)."""
    threshold: float | None = None
    """Instead of a rate, which few faces cannot carry: the score above which a name is given (a gallery's is a cosine
    similarity, from -1 to 1). Nothing is then known of false alarms."""
    out: str = "names"
    """Where the names go."""

    def __post_init__(self) -> None:
        if (self.gallery is None) == (self.report is None):
            raise ConfigError(
                "who gives the names? Choose one: enrolled people (--gallery) or an evaluation's SVM (--report)"
            )
        if self.threshold is not None and self.strangers:
            raise ConfigError(
                f"threshold is {self.threshold} and strangers {self.strangers}, which are there to find one; "
                f"give --threshold or --strangers"
            )
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigError(f"threshold is {self.threshold}; choose a finite score (--threshold)")
        if self.report and not self.strangers and self.threshold is None:
            raise ConfigError(
                "an SVM keeps no faces to count false alarms on; name embeddings of people it was not fitted on "
                "(--strangers), or choose the score yourself (--threshold)"
            )
        if not 0 < self.false_alarms < 1:
            raise ConfigError(
                f"false_alarms is {self.false_alarms}; it lies between 0 and 1 (--false_alarms)"
            )


@dataclass(frozen=True)
class Threshold:
    """Above which score a name is given, and what says so."""

    score: float
    faces: int
    """Strangers' faces that false alarms were counted on; 0 if the score was chosen by the user."""
    people: int
    """0 if the strangers have no names."""
    strangers: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {
            "threshold": self.score,
            "stranger_faces": self.faces,
            "stranger_people": self.people,
            "strangers": self.strangers,
        }


def identify(config: IdentifyConfig) -> publish.Dataset:
    """Name every face and publish schema.NAMES rows. Raises FacerecError, and then writes nothing, where things do not fit."""
    faces = _open(config.embeddings, "--embeddings")
    strangers = _open(config.strangers, "--strangers") if config.strangers else None
    recogniser = _recogniser(config, faces)
    if strangers:
        _require_one_model(faces, strangers, "--strangers")
    threshold = _threshold(config, recogniser, strangers)
    out = storage.absolute(config.out)
    about = {
        "embeddings_digest": faces.digest,
        "recogniser_digest": recogniser.digest,
        "strangers_digest": strangers.digest if strangers else None,
        "false_alarms": config.false_alarms if config.threshold is None else None,
    }
    if config.threshold is not None:
        about["threshold"] = config.threshold
    with publish.exclusive(out, "--out") as fence:
        publish.claim(fence, about, "--out")
        if publish.finished(out):
            print(f"identify: {config.out}: finished already", flush=True)
            return publish.open_dataset(out, "jobs/identify.py")
        generation = publish.begin(fence)
        files, counts = _write(faces, recogniser, threshold.score, generation)
        said = {"score": recogniser.score, "counts": counts, "people": len(recogniser.people)}
        return generation.publish(files, about | said | threshold.to_json())


def _open(folder: str, flag: str) -> publish.Dataset:
    """Published embeddings that hold faces, all by one model."""
    dataset = publish.open_dataset(folder, "jobs/embed.py")
    if not dataset.files("embeddings"):
        raise DatasetError(f"{folder} holds no embeddings; name a folder that jobs/embed.py wrote ({flag})")
    origins = _origins(dataset)
    if not origins:
        raise SourceError(f"{folder} holds no faces ({flag})")
    if len(origins) > 1:
        raise MismatchError(
            f"{folder} holds vectors of several models, which cannot be compared: {', '.join(sorted(origins)[:2])}; "
            f"embed its faces by one ({flag})"
        )
    return dataset


def _origins(dataset: publish.Dataset) -> set[str]:
    """What made the vectors, in words: model and preprocessing."""
    rows = dataset.read("embeddings", ["model_id", "preprocessing_id"]).group_by(
        ["model_id", "preprocessing_id"]
    )
    return {f"{row['model_id']} on {row['preprocessing_id']}" for row in rows.aggregate([]).to_pylist()}


def _require_one_model(faces: publish.Dataset, others: publish.Dataset, flag: str) -> None:
    (ours,), (theirs,) = _origins(faces), _origins(others)
    if ours != theirs:
        raise MismatchError(
            f"{faces.folder} was embedded by {ours} and {others.folder} by {theirs}; embed both by one model ({flag})"
        )
    if bool(faces.manifest.get("flip")) != bool(others.manifest.get("flip")):
        raise MismatchError(
            f"one of {faces.folder} and {others.folder} was embedded with --flip, and the other without; embed both alike ({flag})"
        )


def _recogniser(config: IdentifyConfig, faces: publish.Dataset) -> Recogniser:
    if config.gallery:
        enrolled = _open(config.gallery, "--gallery")
        _require_one_model(faces, enrolled, "--gallery")
        return Gallery.read(enrolled)
    assert config.report is not None  # __post_init__ asks for one of the two
    fitted, ours = FittedSvm.read(config.report), faces.manifest["model_id"]
    if fitted.model_id != ours:
        raise MismatchError(
            f"the SVM of {config.report} was fitted on vectors of model {fitted.model_id} and {config.embeddings} was embedded "
            f"by {ours}; embed with the model that was evaluated, or evaluate this one (--report)"
        )
    return fitted


def _threshold(
    config: IdentifyConfig, recogniser: Recogniser, strangers: publish.Dataset | None
) -> Threshold:
    """The lowest score that at most the stated share of strangers exceed, or the user's; ConfigError if they are too few."""
    if config.threshold is not None:
        return Threshold(config.threshold, 0, 0, "nobody: the score was chosen (--threshold)")
    if strangers:
        table = strangers.read("embeddings", ["identity", "embedding"])
        names = np.array(table["identity"].fill_null("").to_pylist(), str)
        outside = ~np.isin(names, sorted(recogniser.people))
        people = len(set(names[outside].tolist()) - {""})
        whose = (
            f"people in {config.strangers} who are not enrolled"
            if people
            else f"those in {config.strangers}, which has no names: taken to be of nobody enrolled"
        )
        require_enough(int(outside.sum()), config.false_alarms, whose)
        sureness = recogniser.answer(schema.vectors(table)[outside])[1]
    else:
        assert isinstance(recogniser, Gallery)  # __post_init__ asks for strangers otherwise
        whose = f"the people in {config.gallery}, each kept out in turn"
        if len(recogniser.people) < 2:
            raise ConfigError(
                f"{config.gallery} holds one person, so it has no strangers to count false alarms on; name embeddings of "
                f"other people (--strangers), or choose the score above which a name is given (--threshold)"
            )
        require_enough(len(recogniser.vectors), config.false_alarms, whose)
        sureness, people = recogniser.sureness_without_them(), len(recogniser.people)
    return Threshold(scores.alarm_threshold(sureness, config.false_alarms), len(sureness), people, whose)


def _write(
    faces: publish.Dataset, recogniser: Recogniser, threshold: float, generation: publish.Generation
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """A file of names for each file of vectors, one in memory at a time; their manifest entries, and counts."""
    files, known = [], 0
    for number, rows in enumerate(faces.tables("embeddings", [*KEPT, "embedding"])):
        table = _named(rows, recogniser, threshold)
        files.append(generation.write(f"names-{number:05d}.parquet", "names", table))
        known += table.num_rows - table["name"].null_count
        print(f"identify: {number + 1}/{len(faces.files('embeddings'))} files", flush=True)
    total = sum(file["rows"] for file in files)
    return files, {"faces": total, "named": known, "unknown": total - known}


def _named(table: pa.Table, recogniser: Recogniser, threshold: float) -> pa.Table:
    """schema.NAMES rows; nobody's name where the score does not exceed the threshold."""
    names, score = (
        recogniser.answer(schema.vectors(table)) if table.num_rows else (np.empty(0, str), np.empty(0))
    )
    columns = {
        "name": pa.array(names.tolist(), pa.string(), mask=score <= threshold),
        "score": pa.array(score, pa.float32()),
    }
    return (
        pa.table({**{name: table[name] for name in KEPT}, **columns})
        .select(schema.NAMES.names)
        .cast(schema.NAMES)
    )
