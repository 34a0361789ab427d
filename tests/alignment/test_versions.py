"""A photograph is its content: one that was replaced is aligned again, and one that was deleted is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from facerec import publish, storage
from facerec.alignment.config import AlignConfig
from facerec.alignment.pipeline import align_source
from facerec.synthetic import render

pytestmark = pytest.mark.usefixtures("ray_local")


def draw(path: Path, person: int, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(person, number)).save(path, format="PNG")
    return path


def config(tmp_path: Path) -> AlignConfig:
    """Photographs of drawn people, each of which is taken for an aligned face."""
    return AlignConfig(
        source=str(tmp_path / "photographs"), out=str(tmp_path / "faces"), detector="none", part=2
    )


def people(tmp_path: Path) -> list[Path]:
    names = [f"{name}/{number}.png" for name in ("Ada", "Bo") for number in range(3)]
    return [draw(tmp_path / "photographs" / name, at) for at, name in enumerate(names)]


def images(dataset: publish.Dataset) -> dict[str, bytes]:
    rows = dataset.read("faces", ["source_uri", "image"]).to_pylist()
    return {row["source_uri"]: row["image"]["bytes"] for row in rows}


def test_a_replaced_photograph_is_aligned_again_and_only_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced, *others = (str(path) for path in people(tmp_path))
    before = images(align_source(config(tmp_path)))
    draw(Path(replaced), 99)
    capsys.readouterr()
    second = align_source(config(tmp_path))
    assert "6 photographs listed (0 other files ignored), 1 to align" in capsys.readouterr().out
    after = images(second)
    assert after[replaced] != before[replaced]
    assert {uri: after[uri] for uri in others} == {uri: before[uri] for uri in others}
    assert second.manifest["counts"]["photographs"] == second.manifest["counts"]["faces"] == 6
    fresh = AlignConfig(**{**vars(config(tmp_path)), "out": str(tmp_path / "fresh")})
    assert align_source(fresh).read("faces").equals(second.read("faces"))


def test_a_deleted_photograph_leaves_the_next_generation_and_comes_back_from_its_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deleted = people(tmp_path)[0]
    first = align_source(config(tmp_path))
    deleted.rename(tmp_path / "elsewhere.png")
    second = align_source(config(tmp_path))
    assert str(deleted) in images(first)
    assert images(first).keys() - images(second).keys() == {str(deleted)}
    assert second.manifest["counts"]["photographs"] == 5
    (tmp_path / "elsewhere.png").rename(deleted)
    capsys.readouterr()
    third = align_source(config(tmp_path))
    assert "6 photographs listed (0 other files ignored), 0 to align" in capsys.readouterr().out
    assert third.generation == 3
    assert third.read("faces").equals(first.read("faces"))


def test_every_row_says_of_which_version_it_was_made(tmp_path: Path) -> None:
    people(tmp_path)
    (tmp_path / "photographs" / "Ada" / "damaged.png").write_bytes(b"no image")
    dataset = align_source(config(tmp_path))
    rows = [*dataset.read("faces").to_pylist(), *dataset.read("rejects").to_pylist()]
    for row in rows:
        found = Path(row["source_uri"]).stat()
        assert row["source_version"] == f"{found.st_size}-{found.st_mtime_ns}"
    assert len(rows) == 7
    assert all(
        "source_version" in storage.read_table(uri).column_names for uri in publish.parts(dataset.folder)
    )
