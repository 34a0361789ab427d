"""What is scored: the faces, in one order for all representations, and who plays which part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from facerec import documents, publish, schema, seeding, storage
from facerec.errors import DatasetError, MismatchError, SourceError
from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.leakage import Leaks, Seen, find
from facerec.models.format import read_card
from facerec.models.images import decode_jpeg

PIXELS = 16
"""Side of the pixel control: what a face is without any network."""
CHOOSERS = 0.2
"""Share of the people who choose the clustering's parameters, where no validation or training people can."""

Strings = NDArray[np.str_]
Floats = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Faces:
    """Rows that stay together."""

    vectors: dict[str, Floats]
    """trained, and where they are there untrained and pixels: each [n, d]."""
    identities: Strings
    hashes: I64
    face_ids: Strings

    def of(self, people: set[str]) -> Faces:
        """These people's rows."""
        keep = np.isin(self.identities, sorted(people))
        vectors = {name: rows[keep] for name, rows in self.vectors.items()}
        return Faces(vectors, self.identities[keep], self.hashes[keep], self.face_ids[keep])


@dataclass(frozen=True)
class Cast:
    """Who plays which part; the names are of people with faces."""

    scored: set[str]
    choosers: set[str]
    """They choose the clustering's parameters, and are not clustered."""
    who_chooses: str
    """In words, for the report."""


@dataclass(frozen=True)
class Inputs:
    """The folders of an evaluation, opened and known to belong together."""

    trained: publish.Dataset
    control: publish.Dataset | None
    faces: publish.Dataset | None
    run: dict[str, Any] | None

    @property
    def datasets(self) -> dict[str, publish.Dataset]:
        """Embeddings by representation."""
        return {"trained": self.trained} | ({"untrained": self.control} if self.control else {})


def open_inputs(config: EvaluateConfig) -> Inputs:
    """Open the folders; raises FacerecError where one is missing or two do not belong together."""
    trained = publish.open_dataset(config.embeddings, "jobs/embed.py")
    control, faces = config.folder("control"), config.folder("faces")
    inputs = Inputs(
        trained,
        publish.open_dataset(control, "jobs/embed.py") if control else None,
        publish.open_dataset(faces, "jobs/align.py") if faces else None,
        _read_run(config),
    )
    _require_one_origin(config, inputs)
    return inputs


def _read_run(config: EvaluateConfig) -> dict[str, Any] | None:
    folder = config.folder("run")
    if folder is None:
        return None
    run = documents.read_run(storage.absolute(folder))
    if run is None:
        raise SourceError(f"{folder} holds no run.json; run jobs/train.py first, or name another --run")
    return run


def _require_one_origin(config: EvaluateConfig, inputs: Inputs) -> None:
    run = config.folder("run")
    digest = inputs.faces.digest if inputs.faces else inputs.trained.manifest["faces_digest"]
    origin = config.folder("faces") or config.embeddings
    named = (
        ("--embeddings", config.embeddings, "model"),
        ("--control", config.folder("control"), "untrained"),
    )
    for (flag, folder, model), dataset in zip(named, (inputs.trained, inputs.control), strict=True):
        if dataset is None:
            continue
        if dataset.manifest["faces_digest"] != digest:
            raise MismatchError(
                f"{folder} was made from other faces than {origin}; embed these faces again ({flag})"
            )
        # Another run's split would score people that this network was trained on, and look splendid.
        ours = read_card(storage.join(storage.absolute(run), model)).model_id if run else None
        if run and dataset.manifest["model_id"] != ours:
            raise MismatchError(
                f"{folder} was embedded by model {dataset.manifest['model_id']} and {run}/{model} is {ours}; "
                f"embed with {run}/{model} ({flag}) or name the run it belongs to (--run)"
            )
    if inputs.control and inputs.trained.manifest["model_id"] == inputs.control.manifest["model_id"]:
        raise MismatchError(
            f"{config.embeddings} and {config.folder('control')} come from the same model "
            f"{inputs.trained.manifest['model_id']}; the control must come from the untrained one (--control)"
        )
    flips = [bool(each.manifest.get("flip")) for each in (inputs.trained, inputs.control) if each]
    if len(set(flips)) > 1:
        raise MismatchError(
            f"one of {config.embeddings} and {config.folder('control')} was embedded with --flip, and the other without; "
            "embed both alike (--control)"
        )


def read_seen(config: EvaluateConfig, inputs: Inputs) -> Seen | None:
    """Faces of the people the run trained on or watched, from its own faces; None without a run."""
    if inputs.run is None:
        return None
    people = {*inputs.run["split"]["train"], *inputs.run["split"].get("validation", [])}
    pinned = inputs.run["faces"]
    if pinned["digest"] == inputs.trained.manifest["faces_digest"]:
        table = inputs.trained.read("embeddings", ["identity", "phash"])
    else:
        table = _run_faces(config, pinned).read("faces", ["identity", "phash"])
    identities, hashes = names_of(table), table["phash"].to_numpy()
    seen = np.isin(identities, sorted(people))
    return Seen(identities[seen], hashes[seen], frozenset(people))


def _run_faces(config: EvaluateConfig, pinned: dict[str, Any]) -> publish.Dataset:
    folder = config.trained_faces or pinned["folder"]
    try:
        faces = publish.open_pinned(folder, "jobs/align.py", pinned)
    except DatasetError as error:
        if now := _after_erasure(folder, pinned):
            return now
        raise DatasetError(
            f"the faces that {config.folder('run')} was trained on are not there ({error}), so nobody can say whether it has seen "
            f"the scored people; name their folder (--trained_faces)"
        ) from None
    if faces.digest != pinned["digest"]:
        raise MismatchError(
            f"{config.folder('run')} was trained on faces with digest {pinned['digest'][:12]} and {folder} has {faces.digest[:12]}; "
            f"name the right folder (--trained_faces)"
        )
    return faces


def _after_erasure(folder: str, pinned: dict[str, Any]) -> publish.Dataset | None:
    """The faces as they are now, where those the run was trained on were purged because somebody was erased from them."""
    try:
        now = publish.open_dataset(folder, "jobs/align.py")
    except DatasetError:
        return None
    erased = {entry["digest"] for entry in now.manifest.get("erased", [])}
    return now if pinned["digest"] in erased else None


def choose_people(config: EvaluateConfig, inputs: Inputs, identities: Strings) -> set[str]:
    """The people whom the evaluation is about, before leaks are taken out."""
    there = set(identities.tolist()) - {""}
    if config.people == "all" and not there:
        raise SourceError(
            f"no face in {config.embeddings} has an identity; embed a folder a person (--embeddings)"
        )
    if config.people == "all":
        return there
    assert inputs.run is not None  # folder() names one wherever a run's unseen people are scored
    unseen = set(inputs.run["split"]["unseen"])
    if not unseen & there:
        raise SourceError(
            f"none of the run's {len(unseen)} unseen people is in {config.embeddings}; name its embeddings (--embeddings)"
        )
    return unseen & there


def load(config: EvaluateConfig, inputs: Inputs, seen: Seen | None) -> tuple[Faces, Cast, Leaks | None]:
    """The rows of everybody who plays a part. Raises SourceError where nobody is left to score."""
    table = inputs.trained.read("embeddings", ["face_id", "identity", "phash"])
    identities, hashes = names_of(table), table["phash"].to_numpy()
    scored = choose_people(config, inputs, identities)
    ours = np.isin(identities, sorted(scored))
    leaks = find(scored, identities[ours], hashes[ours], seen) if seen else None
    if leaks and config.leakage == "exclude":
        if not scored - leaks.people:
            raise SourceError(
                f"all {len(scored)} people in {config.embeddings} were seen by {config.folder('run')} in training, so no "
                f"score would be worth anything; embed other people, or score them nevertheless (--leakage report)"
            )
        scored -= leaks.people
    cast = _cast(config, inputs, scored, set(identities.tolist()) - {""})
    keep = np.flatnonzero(np.isin(identities, sorted(cast.scored | cast.choosers)))
    vectors = {name: vectors_of(dataset)[keep] for name, dataset in inputs.datasets.items()}
    if inputs.faces:
        vectors["pixels"] = np.stack([_pixels(data) for data in _encoded(inputs.faces, keep)])
    face_ids = np.array(table["face_id"].take(keep).to_pylist(), dtype=str)
    return Faces(vectors, identities[keep], hashes[keep], face_ids), cast, leaks


def _cast(config: EvaluateConfig, inputs: Inputs, scored: set[str], there: set[str]) -> Cast:
    """Validation people choose parameters; where there are none, training people; without a run, a fifth of the people."""
    split = inputs.run["split"] if inputs.run else {}
    for part, words in (
        ("validation", "validation people"),
        ("train", "training people (the run has no validation people)"),
    ):
        choosers = (set(split.get(part, [])) & there) - scored
        if choosers:
            return Cast(scored, choosers, words)
    ranked = sorted(scored, key=lambda name: seeding.derive("choosers", config.seed, name))
    choosers = set(ranked[: round(CHOOSERS * len(ranked))])
    return Cast(scored, choosers, "a seeded fifth of the scored people, who are then not clustered")


def whole_people(identities: Strings, most: int, random: np.random.Generator) -> I64:
    """Rows of people drawn at random, all of each, as many as ``most`` faces hold and at least two."""
    names, person, faces = np.unique(identities, return_inverse=True, return_counts=True)
    order = random.permutation(len(names))
    taken = max(2, int(np.searchsorted(np.cumsum(faces[order]), most, side="right")))
    return np.flatnonzero(np.isin(person, order[:taken]))


def names_of(table: pa.Table) -> Strings:
    """Identities [n], empty where a face has none."""
    return np.array(table["identity"].fill_null("").to_pylist(), dtype=str)


def vectors_of(dataset: publish.Dataset) -> Floats:
    """All vectors [n, d]."""
    return schema.vectors(dataset.read("embeddings", ["embedding"]))


def _encoded(faces: publish.Dataset, keep: I64) -> Iterator[bytes]:
    first = 0
    for table in faces.tables("faces", ["image"]):
        images = table["image"]
        for row in keep[(keep >= first) & (keep < first + len(images))] - first:
            yield images[int(row)].as_py()["bytes"]
        first += len(images)


def _pixels(data: bytes) -> Floats:
    small = cv2.resize(decode_jpeg(data), (PIXELS, PIXELS), interpolation=cv2.INTER_AREA)
    return small.ravel().astype(np.float32)
