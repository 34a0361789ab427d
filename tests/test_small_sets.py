"""Sets at the small end: enrolment takes anything, training says what it lacks before any work, and the rest runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from facerec import schema, storage
from facerec.alignment.config import AlignConfig
from facerec.alignment.pipeline import align_source
from facerec.alignment.pipeline import plan as align_plan
from facerec.embedding.config import EmbedConfig
from facerec.embedding.pipeline import embed_faces
from facerec.errors import ConfigError, FacerecError, MismatchError, SourceError
from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.pipeline import evaluate
from facerec.models.embedder import ModelConfig, build
from facerec.models.format import save_model
from facerec.naming.pipeline import IdentifyConfig, identify
from facerec.reporting.page import ReportConfig, write_report
from facerec.schema import FACE_SIDE
from facerec.synthetic import SyntheticConfig, write_collection
from facerec.training.batches import BatchConfig
from facerec.training.config import TrainConfig
from facerec.training.fit import train
from facerec.training.forecast import forecast
from jobs.pipeline import PipelineConfig, plan, require_same_model
from tests.support.faces import write_drawn_faces, write_faces
from tests.support.generations import amend

ROOT = Path(__file__).parents[1]
MODEL = ModelConfig(side=64)


def listed(folder: Path, *photographs: int) -> Path:
    """A folder per person with so many empty files each: what a listing sees, and nothing to decode."""
    for person, count in enumerate(photographs):
        (folder / f"person-{person}").mkdir(parents=True)
        for number in range(count):
            (folder / f"person-{person}" / f"{number}.jpg").touch()
    return folder


@pytest.mark.parametrize("photographs", [(1,), (3,), (1, 1, 1, 1, 1), (2, 1)])
def test_alignment_takes_one_person_and_one_photograph_of_each(
    tmp_path: Path, photographs: tuple[int, ...]
) -> None:
    source = listed(tmp_path / "enrolled", *photographs)
    said = align_plan(AlignConfig(source=str(source), out=str(tmp_path / "faces")))
    assert said["photographs"] == f"{sum(photographs)} (0 other files ignored)"
    assert said["identities"] == len(photographs)


@pytest.mark.parametrize(
    "photographs, kind, words",
    [
        ((40,), SourceError, "1 identities found; at least 5"),
        ((9, 9), SourceError, "2 identities found; at least 5"),
        ((9, 9, 9), SourceError, "3 identities found; at least 5"),
        (
            (1, 1, 1, 1, 1),
            SourceError,
            r"0 of the 2 identities to train on have 2 photographs.*3 of 5 are held out.*--split\.unseen",
        ),
        ((1, 2, 2, 1, 2), SourceError, r"held out|to train on"),
    ],
)
def test_the_pipeline_refuses_before_alignment_what_cannot_be_trained_on_or_scored(
    tmp_path: Path, photographs: tuple[int, ...], kind: type[FacerecError], words: str
) -> None:
    source = listed(tmp_path / "photos", *photographs)
    with pytest.raises(kind, match=words):
        plan(PipelineConfig(source=str(source), out=str(tmp_path / "out")))


def test_the_demo_refuses_them_in_one_line_before_it_starts_anything(tmp_path: Path) -> None:
    source = listed(tmp_path / "photos", 9, 9, 9)
    command = [sys.executable, "jobs/demo.py", "--source", str(source), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("demo: error: 3 identities found; at least 5")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_pipeline_takes_five_people_of_two_photographs(tmp_path: Path) -> None:
    source = listed(tmp_path / "photos", 2, 2, 2, 2, 2)
    said = plan(PipelineConfig(source=str(source), out=str(tmp_path / "out")))
    assert said["align: photographs"] == "10 (0 other files ignored)"


def test_the_pipeline_refuses_too_few_people_for_its_batch_and_faces_without_names(tmp_path: Path) -> None:
    source = str(listed(tmp_path / "photos", 3, 3, 3, 3, 3))
    train = TrainConfig(batch=BatchConfig(p=8))
    with pytest.raises(ConfigError, match=r"p is 8 but 2 training identities.*--batch\.p"):
        plan(PipelineConfig(source=source, out=str(tmp_path / "out"), train=train))
    with pytest.raises(ConfigError, match=r"--align\.faces subject"):
        PipelineConfig(source=source, out="out", align=AlignConfig(faces="all"))


@pytest.mark.parametrize("people, faces", [(1, 9), (4, 9), (5, 1)])
def test_the_forecast_refuses_faces_that_are_too_few_with_the_numbers(
    tmp_path: Path, people: int, faces: int
) -> None:
    folder = str(write_faces(tmp_path / "faces", people, faces, side=32).folder)
    with pytest.raises(SourceError, match=rf"^(0 of the 2|{people}) identities"):
        forecast(TrainConfig(faces=folder, run=str(tmp_path / "run"), num_workers=0))


def test_a_batch_that_nothing_but_single_faces_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"37 x 41 = 1517 faces.*2 to 32.*--batch\.micro_batch"):
        BatchConfig(p=37, k=41).fit(40)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("people", [1, 5])
def test_one_photograph_of_each_person_is_aligned_embedded_and_named(tmp_path: Path, people: int) -> None:
    """Enrolled by one photograph each, and looked up by the same one: an untrained network knows no other."""
    drawn = SyntheticConfig(identities=people, photographs=1)
    write_collection(tmp_path / "enrolled", drawn)
    model, faces = str(tmp_path / "model"), str(tmp_path / "faces")
    aligned = align_source(AlignConfig(source=str(tmp_path / "enrolled"), out=faces))
    assert aligned.manifest["counts"]["faces"] == people
    save_model(model, build(MODEL, 0), MODEL, aligned.preprocessing, {})
    gallery = embed_faces(EmbedConfig(faces=faces, model=model, out=str(tmp_path / "gallery"))).folder
    asked = {"embeddings": gallery, "gallery": gallery, "out": str(tmp_path / "names")}
    with pytest.raises(ConfigError, match=r"--strangers.*--threshold"):
        identify(IdentifyConfig(**asked))  # type: ignore[arg-type]
    names = identify(IdentifyConfig(**asked, threshold=0.9))  # type: ignore[arg-type]
    wanted = {f"person_{person:04d}" for person in range(people)}
    assert set(names.read("names")["name"].to_pylist()) == wanted


@pytest.mark.usefixtures("ray_local")
def test_five_people_of_two_photographs_are_trained_on_scored_and_reported(tmp_path: Path) -> None:
    where = {
        name: str(tmp_path / name) for name in ("faces", "run", "embeddings", "untrained", "report.json")
    }
    drawn = write_drawn_faces(where["faces"], 5, 2, side=FACE_SIDE)
    counts = {
        "photographs": 10,
        "photographs_with_faces": 10,
        "ignored_files": 0,
        "image_rejects": {},
        "face_rejects": {},
    }
    amend(drawn, {"label_conflicts": [], "counts": drawn.manifest["counts"] | counts})
    train(
        TrainConfig(
            faces=where["faces"],
            run=where["run"],
            model=MODEL,
            batch=BatchConfig(k=8, p_max=16),
            steps=25,
            num_workers=0,
        )
    )
    for model, out in (("model", "embeddings"), ("untrained", "untrained")):
        embed_faces(EmbedConfig(faces=where["faces"], model=f"{where['run']}/{model}", out=where[out]))
    report = evaluate(
        EvaluateConfig(
            faces=where["faces"],
            run=where["run"],
            embeddings=where["embeddings"],
            control=where["untrained"],
            out=where["report.json"],
            replicates=20,
        )
    )
    assert len(report["unseen_people"]) == 3
    page = write_report(
        ReportConfig(faces=where["faces"], report=where["report.json"], out=f"{tmp_path}/report.html")
    )
    assert "5 people" in Path(page).read_text()


def test_five_real_people_of_two_and_three_photographs_run_through_the_demo(
    tmp_path: Path, photographs_of_people: Path
) -> None:
    people = sorted(folder for folder in (photographs_of_people / "pins").iterdir() if folder.is_dir())[:5]
    for number, folder in enumerate(people):
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for photograph in sorted(folder.iterdir())[: 2 + number % 2]:
            shutil.copy(photograph, tmp_path / "photos" / folder.name)
    command = [
        sys.executable,
        "jobs/demo.py",
        "--source",
        str(tmp_path / "photos"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "report.html").exists()


def test_the_pipeline_refuses_more_steps_while_vectors_of_the_old_model_are_there(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 12, 5, side=64)
    run, vectors = tmp_path / "run", str(tmp_path / "embeddings")
    config = TrainConfig(faces=faces.folder, run=str(run), model=MODEL, num_workers=0)
    run.mkdir()
    settings = json.loads(json.dumps(config.decisive())) | {"schema_version": schema.VERSION}
    storage.write_json(f"{run}/claim.json", settings)
    longer = replace(config, steps=900)
    require_same_model(longer, vectors)
    storage.write_json(f"{vectors}/claim.json", {})
    require_same_model(config, vectors)
    with pytest.raises(
        MismatchError, match=r"after 600 steps, and the run would go on to 900; .*--train\.steps"
    ):
        require_same_model(longer, vectors)
