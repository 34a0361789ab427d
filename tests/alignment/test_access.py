"""Faults of one photograph are rejects that are tried again; faults of the environment are retried or stop the job."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from facerec import access, decoding, ledger, publish, storage
from facerec.alignment import aligner
from facerec.alignment.aligner import Aligner
from facerec.alignment.config import AlignConfig
from facerec.alignment.pipeline import align_source, plan
from facerec.errors import SourceError, StorageError
from facerec.photographs import as_table
from facerec.session import ray_session
from facerec.synthetic import render


@pytest.fixture
def photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One photograph; attempts follow each other without pauses."""
    monkeypatch.setattr(access, "PAUSES", (0.0, 0.0, 0.0))
    Image.fromarray(render(0, 0)).save(tmp_path / "1.png")
    return tmp_path / "1.png"


def align(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = Aligner(AlignConfig(detector="none"))(
        as_table([str(path)], ["Ada"])
    ).to_pylist()
    return rows


class Failing:
    """A function that fails ``times`` times before it works."""

    def __init__(self, works: Callable[..., Any], error: BaseException, times: int) -> None:
        self.works, self.error, self.times = works, error, times

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return self.works(*arguments, **options)


FAULTS = [
    *(OSError(code, os.strerror(code)) for code in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)),
    *(OSError(code, os.strerror(code)) for code in (errno.ENOMEM, errno.ETIMEDOUT, errno.ENOTCONN)),
    MemoryError(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
@pytest.mark.parametrize("where", ["open", "decode"])
def test_a_fault_of_the_environment_is_tried_again_and_then_stops_the_job(
    photograph: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, where: str
) -> None:
    module, name = (storage, "open_input") if where == "open" else (aligner, "decode")
    works = getattr(module, name)
    monkeypatch.setattr(module, name, Failing(works, fault, 3))
    assert [row["reason"] for row in align(photograph)] == [None]
    monkeypatch.setattr(module, name, Failing(works, fault, 4))
    with pytest.raises(
        StorageError, match=r"1\.png cannot be read: .*4 attempts.*the same command"
    ) as caught:
        align(photograph)
    assert "\n" not in str(caught.value)


def test_a_disk_that_fails_while_a_large_file_is_read_is_no_damaged_photograph(
    photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is too large to be held is read while it is decoded."""
    monkeypatch.setattr(decoding, "HELD_BYTES", 100)
    works, fault = storage.open_input, OSError(errno.EIO, "Input/output error")

    class Torn:
        def __init__(self, uri: str) -> None:
            self.file = works(uri)

        def __enter__(self) -> Torn:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def readinto(self, buffer: Any) -> int:
            if self.file.tell() > 0:
                raise fault
            return int(self.file.readinto(memoryview(buffer)[:1000]))

    monkeypatch.setattr(storage, "open_input", Torn)
    with pytest.raises(StorageError, match="Input/output error"):
        align(photograph)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP])
def test_a_photograph_that_is_not_there_or_not_ours_is_unavailable(
    photograph: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(storage, "open_input", Failing(print, OSError(code, "said"), 1))
    (row,) = align(photograph)
    assert (row["level"], row["reason"], row["detail"]) == ("image", "unavailable", os.strerror(code))
    assert row["source_hash"] is None


def test_a_photograph_is_unavailable_without_a_monkeypatch_too(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "damaged.jpg").write_bytes(b"no image")
    names = ["missing.jpg", "broken.jpg", "loop.jpg", "damaged.jpg/1.jpg", "damaged.jpg"]
    reasons = [align(tmp_path / name)[0]["reason"] for name in names]
    assert reasons == ["unavailable"] * 4 + ["unreadable"]


def test_names_that_no_file_can_have_do_not_stop_the_first_look(photograph: Path) -> None:
    listed = as_table(["/photos/a\0b.jpg", str(photograph)], ["Ada", "Ada"])
    access.require_some(listed, "--source")
    with pytest.raises(StorageError, match="none of 1 photographs"):
        access.require_some(listed.slice(0, 1), "--source")


def test_a_part_that_holds_unavailable_photographs_is_made_again_and_the_good_row_counts(
    tmp_path: Path,
) -> None:
    names = [tmp_path / f"{at}.png" for at in range(3)]
    listed = as_table([str(name) for name in names], ["Ada"] * 3, ["1", "2", "3"])
    align_part, folder = Aligner(AlignConfig(detector="none")), str(tmp_path / "faces")

    def write(at: int, rows: int) -> dict[str, Any]:
        part = listed.slice(at, rows)
        with publish.exclusive(folder, "--out") as fence:
            counts: dict[str, Any] = publish.write_part(fence, part, lambda: align_part(part)).to_pylist()[0]
        return counts

    Image.fromarray(render(0, 0)).save(names[0])
    assert write(0, 3) == {"photographs": 3, "faces": 1, "rejects": 2, "unavailable": 2}
    assert write(1, 2) == {"photographs": 2, "faces": 0, "rejects": 2, "unavailable": 2}
    assert ledger.missing(publish.parts(folder), listed).equals(listed.slice(1))
    assert ledger.account(publish.parts(folder), listed).reasons("image") == {"unavailable": 2}
    for at in (1, 2):
        Image.fromarray(render(at, 0)).save(names[at])
    assert write(1, 2) == {"photographs": 2, "faces": 2, "rejects": 0, "unavailable": 0}
    assert len(publish.parts(folder)) == 2
    assert not ledger.missing(publish.parts(folder), listed).num_rows
    found = ledger.account(publish.parts(folder), listed)
    assert (found.faces.num_rows, found.rejects.num_rows) == (3, 0)


@pytest.mark.parametrize("column", ["", "version"])
@pytest.mark.usefixtures("ray_local")
def test_a_photograph_that_was_away_is_aligned_once_it_is_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    """With the manifest's own versions, too, by which a file that is away has the key that it has when it is back."""
    names = [f"{name}/{number}.png" for name in ("Ada", "Bo") for number in range(3)]
    for at, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(render(at, 0)).save(tmp_path / name)
    lines = [f"{name},{name[:2].strip('/')}" + (",1" if column else "") for name in names]
    (tmp_path / "list.csv").write_text("\n".join([f"uri,identity{',version' if column else ''}", *lines, ""]))
    source, out = str(tmp_path / "list.csv"), str(tmp_path / "faces")
    config = AlignConfig(source=source, out=out, detector="none", part=3)

    shutil.move(tmp_path / "Bo", tmp_path / "away")
    first = align_source(config)
    assert first.manifest["counts"]["image_rejects"] == {"unavailable": 3}
    assert "WARNING: 3 of 6 photographs could not be opened" in capsys.readouterr().out
    assert align_source(config).generation == 1
    assert "the same photographs cannot be opened as before" in capsys.readouterr().out

    shutil.move(tmp_path / "away", tmp_path / "Bo")
    second = align_source(config)
    assert "3 to align" in capsys.readouterr().out
    assert second.manifest["counts"]["image_rejects"] == {}
    fresh = align_source(AlignConfig(source=source, out=f"{out}-fresh", detector="none", part=6))
    assert second.read("faces").equals(fresh.read("faces"))

    for name in ("Ada", "Bo"):
        shutil.move(tmp_path / name, tmp_path / f"{name} away")
    for attempt in (align_source, plan):
        with pytest.raises(StorageError, match=r"none of 6 photographs .*of 6 listed.*--source"):
            attempt(config)
    assert publish.open_dataset(out, "jobs/align.py").generation == 2


def test_a_fault_in_a_worker_is_one_line_and_leaves_no_part(
    tmp_path: Path, photograph: Path, ray_local: None
) -> None:
    """/proc/self/mem is a regular file, and to read its first byte is an input/output error."""
    del ray_local
    assert photograph.exists()
    Image.fromarray(render(1, 0)).save(tmp_path / "2.png")
    (tmp_path / "list.csv").write_text("uri,identity\n1.png,Ada\n2.png,Bo\n/proc/self/mem,Cy\n")
    config = AlignConfig(source=str(tmp_path / "list.csv"), out=str(tmp_path / "faces"), detector="none")
    with (
        ray_session(),
        pytest.raises(StorageError, match="/proc/self/mem cannot be read: Input/output error"),
    ):
        align_source(config)
    assert not publish.parts(config.out)


@pytest.mark.usefixtures("ray_local")
def test_advice_follows_the_reasons(tmp_path: Path) -> None:
    for name, data in ("blank", None), ("damaged", b"no image"):
        folder = tmp_path / name / "Ada"
        folder.mkdir(parents=True)
        if data is None:
            Image.new("RGB", (99, 99)).save(folder / "1.png")
        else:
            (folder / "1.png").write_bytes(data)
    for name, words in (
        ("blank", r"1 no_face.*--detection\.min_confidence"),
        ("damaged", "1 unreadable.*JPEG"),
    ):
        config = AlignConfig(source=str(tmp_path / name), out=str(tmp_path / f"{name}-faces"))
        with pytest.raises(SourceError, match=words):
            align_source(config)
