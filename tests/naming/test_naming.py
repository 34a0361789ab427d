"""Names: whose face it is, nobody's for strangers at the stated rate, and one line where things do not belong together."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.svm import SVC

from facerec import publish, schema, scores, storage
from facerec.errors import ConfigError, DatasetError, FacerecError, MismatchError, SourceError
from facerec.naming.pipeline import IdentifyConfig, identify
from facerec.svm import save_svm
from tests.support.generations import generation

PEOPLE, EACH = 20, 30


def write_embeddings(
    folder: Path, names: list[str | None], vectors: Any, model: str | list[str] = "m"
) -> publish.Dataset:
    """Publish vectors [n, 128] in two files; face ``i`` is of photograph ``/photos/NAME/i.jpg``."""
    count = len(names)
    unit = np.asarray(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = {
        "face_id": [f"{folder.name}-{at}" for at in range(count)],
        "identity": pa.array(names, pa.string()),
        "source_uri": [f"/photos/{name}/{at}.jpg" for at, name in enumerate(names)],
        "source_version": ["1"] * count,
        "phash": range(count),
        "box": [[0.0, 0.0, 9.0, 9.0]] * count,
        "confidence": [0.9] * count,
        "embedding": list(unit.astype(np.float32)),
        "model_id": [model] * count if isinstance(model, str) else model,
        "preprocessing_id": ["p"] * count,
        "faces_generation": [1] * count,
    }
    table = pa.table({name: pa.array(values) for name, values in columns.items()}).cast(schema.EMBEDDINGS)
    said = model if isinstance(model, str) else model[0]
    with generation(folder) as made:
        files = [
            made.write(f"embeddings-{at:05d}.parquet", "embeddings", rows)
            for at, rows in enumerate((table[: count // 2], table[count // 2 :]))
        ]
        return made.publish(files, {"model_id": said})


def people(count: int, each: int, spread: float, seed: int) -> tuple[list[str], Any]:
    """Names and vectors: a direction a person, with noise; people of one seed are the same."""
    names = np.repeat([f"{seed}-{at}" for at in range(count)], each)
    directions = np.random.default_rng(seed).normal(size=(count, schema.EMBEDDING_DIM))
    noise = np.random.default_rng([seed, each]).normal(size=(count * each, schema.EMBEDDING_DIM))
    return names.tolist(), np.repeat(directions, each, axis=0) + spread * noise


@pytest.fixture
def enrolled(tmp_path: Path) -> IdentifyConfig:
    """A gallery, and as probes other faces of its people and as many strangers'."""
    write_embeddings(tmp_path / "gallery", *people(PEOPLE, EACH, 0.5, seed=1))  # type: ignore[arg-type]
    known, strangers = people(PEOPLE, 10, 0.5, seed=1), people(PEOPLE, 10, 0.5, seed=2)
    write_embeddings(tmp_path / "probes", known[0] + strangers[0], np.concatenate([known[1], strangers[1]]))  # type: ignore[arg-type]
    paths = {"embeddings": "probes", "gallery": "gallery", "out": "names"}
    return IdentifyConfig(**{name: str(tmp_path / path) for name, path in paths.items()})  # type: ignore[arg-type]


def test_people_are_named_by_other_photographs_of_them_and_strangers_are_unknown(
    enrolled: IdentifyConfig,
) -> None:
    names = identify(enrolled)
    table = names.read("names")
    assert table.schema.equals(schema.NAMES)
    probes = publish.open_dataset(enrolled.embeddings, "").read("embeddings")
    assert table["face_id"].equals(probes["face_id"])
    assert table["box"].equals(probes["box"])
    truth = [name if name.startswith("1-") else None for name in probes["identity"].to_pylist()]
    said = table["name"].to_pylist()
    assert [name for name, who in zip(said, truth, strict=True) if who] == [who for who in truth if who]
    alarms = sum(name is not None for name, who in zip(said, truth, strict=True) if not who)
    assert alarms <= 0.05 * PEOPLE * 10  # 20 people say little of a rate: see the next test
    assert names.manifest["counts"]["named"] == PEOPLE * 10 + alarms
    written = [os.stat(uri).st_mtime_ns for uri in names.uris("names")]
    assert identify(enrolled).manifest == names.manifest
    assert [os.stat(uri).st_mtime_ns for uri in names.uris("names")] == written
    os.truncate(names.uris("names")[1], 100)
    with pytest.raises(
        DatasetError, match=r"has 100 bytes, not \d+; remove it and run jobs/identify\.py again"
    ):
        names.read("names", ["name"])
    mended = identify(enrolled)
    assert (mended.generation, mended.digest) == (2, names.digest)
    assert mended.read("names").equals(table)


def test_strangers_raise_as_many_alarms_as_stated_where_the_gallery_has_many_people(
    tmp_path: Path, enrolled: IdentifyConfig
) -> None:
    write_embeddings(tmp_path / "many", *people(1000, 2, 0.5, seed=6))  # type: ignore[arg-type]
    write_embeddings(tmp_path / "strangers", *people(2000, 1, 0.5, seed=7))  # type: ignore[arg-type]
    paths = {"gallery": str(tmp_path / "many"), "embeddings": str(tmp_path / "strangers")}
    counts = identify(IdentifyConfig(**vars(enrolled) | paths | {"false_alarms": 0.05})).manifest["counts"]
    low, high = scores.wilson_interval(counts["named"], 2000)
    assert low <= 0.05 <= high


def test_the_gallery_s_threshold_is_that_of_each_person_kept_out_in_turn(enrolled: IdentifyConfig) -> None:
    about = identify(enrolled).manifest
    table = publish.open_dataset(str(enrolled.gallery), "").read("embeddings")
    vectors, who = schema.vectors(table).astype(float), np.array(table["identity"].to_pylist())
    alike = vectors @ vectors.T
    sureness = np.where(who[:, None] == who, -np.inf, alike).max(axis=1)
    assert about["threshold"] == pytest.approx(np.sort(sureness)[-7], abs=1e-6)  # 6 of 600 may be above
    assert np.sum(sureness > about["threshold"] + 1e-6) == 6
    assert (about["stranger_faces"], about["stranger_people"]) == (600, PEOPLE)


def test_named_strangers_set_the_threshold_and_enrolled_people_among_them_do_not(
    tmp_path: Path, enrolled: IdentifyConfig
) -> None:
    others, vectors = people(10, 60, 0.5, seed=3)
    ours, too = people(PEOPLE, EACH, 0.5, seed=1)
    write_embeddings(tmp_path / "strangers", others + ours, np.concatenate([vectors, too]))  # type: ignore[arg-type]
    settings = vars(enrolled) | {"strangers": str(tmp_path / "strangers")}
    about = identify(IdentifyConfig(**settings)).manifest
    assert (about["stranger_faces"], about["stranger_people"]) == (600, 10)
    assert about["threshold"] < 0.8


def test_strangers_without_names_are_taken_to_be_of_nobody_enrolled(
    tmp_path: Path, enrolled: IdentifyConfig
) -> None:
    vectors = people(10, 60, 0.5, seed=3)[1]
    write_embeddings(tmp_path / "strangers", [None] * 600, vectors)
    settings = vars(enrolled) | {"strangers": str(tmp_path / "strangers")}
    about = identify(IdentifyConfig(**settings)).manifest
    assert (about["stranger_faces"], about["stranger_people"]) == (600, 0)
    assert "has no names" in about["strangers"]


def write_report(folder: Path, names: list[str], vectors: Any, model: str = "m") -> str:
    """What evaluation leaves of an SVM fitted on these."""
    svm = SVC().fit(vectors, names)
    data = save_svm(svm)
    storage.write_bytes(f"{folder}/svm.skops", data)
    bound = {"sha256": hashlib.sha256(data).hexdigest(), "model_id": model}
    said = {"trained": {"people": sorted(set(names))}}
    storage.write_json(f"{folder}/report.json", {"svm": bound, "identification": said})
    return f"{folder}/report.json"


def by_svm(tmp_path: Path, enrolled: IdentifyConfig, model: str = "m") -> IdentifyConfig:
    gallery = publish.open_dataset(str(enrolled.gallery), "").read("embeddings")
    report = write_report(tmp_path, gallery["identity"].to_pylist(), schema.vectors(gallery), model)
    names, vectors = people(20, 30, 0.5, seed=4)
    write_embeddings(tmp_path / "strangers", names, vectors)  # type: ignore[arg-type]
    settings = vars(enrolled) | {"gallery": None, "report": report, "false_alarms": 0.05}
    return IdentifyConfig(**settings | {"strangers": str(tmp_path / "strangers")})


def test_an_evaluation_s_svm_names_people_at_a_rate_counted_on_strangers(
    tmp_path: Path, enrolled: IdentifyConfig
) -> None:
    names = identify(by_svm(tmp_path, enrolled))
    said = names.read("names")["name"].to_pylist()
    probes = publish.open_dataset(enrolled.embeddings, "").read("embeddings")["identity"].to_pylist()
    assert all(name in (None, who) for name, who in zip(said, probes, strict=True) if who.startswith("1-"))
    alarms = sum(name is not None for name, who in zip(said, probes, strict=True) if who.startswith("2-"))
    assert alarms <= 0.15 * PEOPLE * 10
    assert names.manifest["score"] == "margin of the SVM against the rest"


def test_an_svm_of_another_model_or_of_another_report_is_refused(
    tmp_path: Path, enrolled: IdentifyConfig
) -> None:
    config = by_svm(tmp_path, enrolled, model="another")
    with pytest.raises(MismatchError, match=r"vectors of model another .* by m; .*--report"):
        identify(config)
    said = storage.read_json(str(config.report))
    people = {"identification": {"trained": {"people": ["x"]}}}
    storage.write_json(str(config.report), said | people | {"svm": said["svm"] | {"model_id": "m"}})
    with pytest.raises(MismatchError, match="knows other people"):
        identify(config)
    by_svm(
        tmp_path, enrolled
    )  # a kill before its report was written leaves an SVM on vectors of m, of the same people
    storage.write_json(str(config.report), said)
    storage.write_bytes(f"{tmp_path}/svm.skops", storage.read_bytes(f"{tmp_path}/svm.skops") + b"\0")
    with pytest.raises(MismatchError, match=r"svm.skops is not the SVM of .*sha256 is .* and not .*--report"):
        identify(config)
    for damage in ({}, {"svm": {"sha256": 1}}, {"svm": None}, {"identification": {"trained": []}}):
        storage.write_json(str(config.report), {"identification": {}} | damage)
        with pytest.raises(DatasetError, match=r"report\.json is damaged: .*run jobs/evaluate\.py again"):
            identify(config)
    (tmp_path / "svm.skops").unlink()
    with pytest.raises(DatasetError, match="not there any more"):
        identify(config)
    assert not (tmp_path / "names").exists()


def test_vectors_with_and_without_the_mirrored_face_are_not_compared(enrolled: IdentifyConfig) -> None:
    manifest = storage.read_json(f"{enrolled.gallery}/manifest.json")
    storage.write_json(f"{enrolled.gallery}/manifest.json", manifest | {"flip": True})
    with pytest.raises(MismatchError, match=r"with --flip.*--gallery"):
        identify(enrolled)


def one_person() -> tuple[list[str | None], Any]:
    return ["Ada"] * 600, np.random.default_rng(0).normal(size=(600, schema.EMBEDDING_DIM))


@pytest.mark.parametrize(
    "names, vectors, model, error, words",
    [
        (*people(20, 30, 0.5, 1), "another", MismatchError, r"embedded by m on p and .* by another on p"),
        (*one_person(), "m", ConfigError, r"holds one person.*--strangers.*--threshold"),
        ([None] * 600, one_person()[1], "m", SourceError, "600 faces and none with a name"),
        (*people(20, 30, 0.5, 1), ["m"] * 300 + ["n"] * 300, MismatchError, "several models"),
        (
            *people(4, 30, 0.5, 1),
            "m",
            ConfigError,
            r"120 faces .* each kept out in turn .*0.01: 5 .* need 500.*--false_alarms.*--strangers.*--threshold",
        ),
        ([], np.empty((0, schema.EMBEDDING_DIM)), "m", SourceError, "holds no faces"),
    ],
)
def test_a_gallery_that_does_not_fit_is_one_line_and_nothing_is_written(
    tmp_path: Path,
    enrolled: IdentifyConfig,
    names: Any,
    vectors: Any,
    model: Any,
    error: type[FacerecError],
    words: str,
) -> None:
    write_embeddings(tmp_path / "bad", names, vectors, model)
    with pytest.raises(error, match=words) as caught:
        identify(IdentifyConfig(**vars(enrolled) | {"gallery": str(tmp_path / "bad")}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "names").exists()


@pytest.mark.parametrize("people_enrolled", [1, 5])
def test_one_photograph_of_each_person_is_a_gallery_by_a_chosen_score_or_by_strangers(
    tmp_path: Path, enrolled: IdentifyConfig, people_enrolled: int
) -> None:
    names, vectors = people(PEOPLE, 1, 0.5, seed=1)
    write_embeddings(tmp_path / "few", names[:people_enrolled], vectors[:people_enrolled])  # type: ignore[arg-type]
    settings = vars(enrolled) | {"gallery": str(tmp_path / "few")}
    with pytest.raises(ConfigError, match=r"--strangers.*--threshold"):
        identify(IdentifyConfig(**settings))
    chosen = identify(IdentifyConfig(**settings | {"threshold": 0.6}))
    probes = publish.open_dataset(enrolled.embeddings, "").read("embeddings")["identity"].to_pylist()
    wanted = [name if name in names[:people_enrolled] else None for name in probes]
    assert chosen.read("names")["name"].to_pylist() == wanted
    assert chosen.manifest["counts"]["named"] == 10 * people_enrolled
    assert (chosen.manifest["threshold"], chosen.manifest["false_alarms"]) == (0.6, None)
    assert "chosen" in chosen.manifest["strangers"]
    write_embeddings(tmp_path / "strangers", *people(100, 6, 0.5, seed=8))  # type: ignore[arg-type]
    other = settings | {"strangers": str(tmp_path / "strangers"), "out": str(tmp_path / "rated")}
    rated = identify(IdentifyConfig(**other))
    assert rated.manifest["stranger_faces"] == 600
    assert sum(name is not None for name in rated.read("names")["name"].to_pylist()) >= 9 * people_enrolled
    with pytest.raises(MismatchError, match=r"threshold.*--out"):
        identify(IdentifyConfig(**settings | {"threshold": 0.7}))


def test_an_svm_names_people_by_a_chosen_margin(tmp_path: Path, enrolled: IdentifyConfig) -> None:
    config = IdentifyConfig(**vars(by_svm(tmp_path, enrolled)) | {"strangers": None, "threshold": 1e9})
    assert identify(config).manifest["counts"]["named"] == 0


def test_another_gallery_into_the_same_folder_is_refused(tmp_path: Path, enrolled: IdentifyConfig) -> None:
    identify(enrolled)
    write_embeddings(tmp_path / "others", *people(PEOPLE, EACH, 0.5, seed=5))  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match=r"recogniser_digest .*--out"):
        identify(IdentifyConfig(**vars(enrolled) | {"gallery": str(tmp_path / "others")}))


@pytest.mark.parametrize(
    "flags, word",
    [
        ({}, "--gallery"),
        ({"gallery": "a", "report": "b"}, "--report"),
        ({"report": "b"}, "--strangers"),
        ({"gallery": "a", "false_alarms": 0.0}, "--false_alarms"),
        ({"gallery": "a", "threshold": float("nan")}, "--threshold"),
        ({"gallery": "a", "threshold": 0.5, "strangers": "b"}, "--threshold or --strangers"),
    ],
)
def test_a_senseless_flag_is_one_line(flags: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        IdentifyConfig(**flags)
