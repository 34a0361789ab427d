"""Attacks on erasure: keep something of a person although it ends with 0, or make it destroy what belongs to others."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from facerec import lock, publish, s3, storage
from facerec.cli import parse
from facerec.erasure.pipeline import EraseConfig, erase
from facerec.errors import FacerecError
from facerec.records import Shown
from facerec.reporting.page import write_report
from tests.bench.attacks import Attempt
from tests.support.album import (
    NAMES,
    Photograph,
    photographs_of,
    report_of,
    write_album,
    write_all,
    write_vectors,
)
from tests.support.generations import generation
from tests.support.pages import write_page
from tests.support.remains import files, holds, marks
from tests.support.s3 import s3_server

PEOPLE = tuple(name for name in NAMES if name not in ("Ann", "Ann Lee", "anna", "null", "7", "train"))
"""People of the run whose artifacts are all attacked."""
ATTACKED = ("1", "people", unicodedata.normalize("NFD", "José"))


def attacks() -> Iterator[Attempt]:
    """Each on artifacts of its own."""
    with tempfile.TemporaryDirectory(prefix="attack-erasure-") as folder:
        work = Path(folder) / "work"
        with contextlib.redirect_stdout(io.StringIO()):
            photographs = write_all(work, PEOPLE)
        for name in ATTACKED:
            yield _tried(
                f"all artifacts of a run, {name[:20]!r}",
                lambda at, name=name: _run(at, name, photographs),
                work,
            )
        for what, attack in SMALL.items():
            yield _tried(what, attack)


def _tried(what: str, attack: Callable[[Path], str], copied: Path | None = None) -> Attempt:
    """Run an attack in a folder of its own; it gives what harm was done, or nothing."""
    with tempfile.TemporaryDirectory(prefix="attack-erasure-") as folder:
        root = Path(folder) / "work"
        if copied:
            shutil.copytree(copied, root)
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                harm = attack(root)
            except FacerecError as error:
                harm = f"refused: {error}"
            except Exception as error:  # noqa: BLE001  # a crash is harm, whatever it is
                harm = f"crashed: {type(error).__name__}: {error}"
    return Attempt(what, bool(harm), harm)


def _erase(root: Path | str, **whom: str) -> list[str]:
    return erase(EraseConfig(**whom, root=[str(root)]))  # type: ignore[arg-type]


def _run(root: Path, name: str, photographs: list[Photograph]) -> str:
    """Something of the person is left, or rows of others, or the report, are damaged."""
    rows = {folder: len(_rows(root / folder, folder)) for folder in ("faces", "embeddings", "names")}
    left = _erase(root, identity=unicodedata.normalize("NFC", name))
    mine = [each for each in photographs if each.identity == name]
    remains = [path.name for path in files(root) if holds(path, name, marks(mine))]
    if remains and not left:
        return f"left in {remains[0]}"
    wanted = sum(each.reason is None for each in mine)
    lost = {folder: before - len(_rows(root / folder, folder)) for folder, before in rows.items()}
    if set(lost.values()) != {wanted}:
        return f"rows lost: {lost}, theirs: {wanted}"
    if name == "people":
        write_report(report_of(root))
    run = storage.read_json(f"{root}/run/run.json")
    return "" if (run["code_version"], run["precision"]) == ("0.1.0", "fp32") else "run.json was rewritten"


def _rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return publish.open_dataset(str(folder), "").read(kind).to_pylist()


def _album(root: Path, photographs: list[Photograph], source: str = "/photos") -> None:
    write_vectors(root / "embeddings", write_album(root / "faces", photographs, source))


def _two(root: Path) -> list[Photograph]:
    photographs = photographs_of(("Ann", "Zoe"), "/photos")
    _album(root, photographs)
    return photographs


def _address_of_a_manifest(root: Path) -> str:
    _album(
        root, [Photograph("/photos/lists/../people/x.jpg", "Ann", "a"), *photographs_of(("Zoe",), "/photos")]
    )
    left = _erase(root, source="/photos/people/x.jpg")
    return "" if left or len(_rows(root / "faces", "faces")) == 7 else "the address is still there"


def _a_typing_error(root: Path) -> str:
    _two(root)
    try:
        return "" if _erase(root, identity="Anm") else "said that nothing is left"
    except FacerecError:
        return ""


def _an_unreadable_svm(root: Path) -> str:
    _two(root)
    (root / "svm.skops").write_bytes(b"PK Ann")
    return "" if _erase(root, identity="Ann") else "passed over in silence"


def _a_page_of_an_emoji(root: Path) -> str:
    """JSON spells it by two escapes, as it spells every character beyond the first 65,536."""
    _album(root, photographs_of(("Fox \U0001f98a", "Zoe"), "/photos"))
    write_page(root / "page.html", Shown(frozenset(["Fox \U0001f98a"])))
    left = _erase(root, identity="Fox \U0001f98a")
    return "" if left or not (root / "page.html").exists() else "the page is still there"


def _a_job_that_has_only_claimed(root: Path) -> str:
    _two(root)
    with lock.exclusive(f"{root}/vectors", "--out"):
        try:
            _erase(root, identity="Ann")
        except FacerecError:
            return ""
    return "erased under a running job"


def _a_torn_write(root: Path) -> str:
    _two(root)
    torn = root / f"report.html.{'0' * 32}.tmp"
    torn.write_text("face")
    return "" if _erase(root, identity="Ann") or not torn.exists() else "it is still there"


def _an_unfinished_upload(_: Path) -> str:
    with mock.patch.dict(os.environ), s3_server(os.environ.__setitem__) as bucket:
        root = f"{bucket.bucket}/work"
        write_album(
            f"{root}/faces",
            [Photograph(f"/photos/{name}/1.jpg", name, name) for name in ("Ann", "Zoe")],
            "/photos",
        )
        upload = s3.client().create_multipart_upload(Bucket="faces", Key="work/report.html")["UploadId"]
        s3.client().upload_part(
            Bucket="faces", Key="work/report.html", UploadId=upload, PartNumber=1, Body=b"Ann"
        )
        left = _erase(root, identity="Ann")
        return (
            ""
            if left or "Uploads" not in s3.client().list_multipart_uploads(Bucket="faces")
            else "it is still there"
        )


def _a_folder_above_the_source(root: Path) -> str:
    named = photographs_of(("anna",), "/photos")
    unnamed = [replace(each, identity=None) for each in photographs_of(("zoe",), "/home/anna/album")]
    _album(root / "a", unnamed, "/home/anna/album")
    _album(root / "b", named)
    _erase(root, identity="anna")
    lost = 7 - len(_rows(root / "a" / "faces", "faces"))
    return f"{lost} rows of somebody else went" if lost else ""


def _a_copy_of_a_copy(root: Path) -> str:
    ann, zoe = photographs_of(("Ann",), "/photos"), photographs_of(("Zoe",), "/photos")
    copy, later = (
        Photograph("/photos/Zoe/copy.jpg", "Zoe", content) for content in (ann[0].content, "later")
    )
    _album(root, [*ann, *zoe, copy, later])
    _erase(root, identity="Ann")
    left = len(_rows(root / "faces", "faces"))
    return "" if left == 8 else f"{8 - left} photographs of somebody else went"


def _the_last_name(root: Path) -> str:
    _two(root)
    row = {"face_id": "0" * 32, "source_uri": "/photos/Ann/0.jpg", "name": "Ann", "score": 1.0}
    table = publish.schema.NAMES.empty_table().from_pylist([row], publish.schema.NAMES)
    with generation(root / "names") as made:
        entry = made.write("names-00000.parquet", "names", table)
        made.publish([entry], {"counts": {"faces": 1, "named": 1, "unknown": 0}})
    return "; ".join(_erase(root, identity="Ann"))


def _other_peoples_files(root: Path) -> str:
    _album(root, photographs_of(("7", "Zoe"), "/photos", each=9))
    (root / "notes.txt").write_text("7.jpg\n")
    return "; ".join(_erase(root, identity="7"))


def _a_name_of_yaml(root: Path) -> str:
    _album(root, photographs_of(("null", "Zoe"), "/photos"))
    config = parse("erase", EraseConfig, ["--identity", "null", "--root+", str(root)])
    return "; ".join(erase(config)) or (
        "" if len(_rows(root / "faces", "faces")) == 7 else "they are still there"
    )


SMALL: dict[str, Callable[[Path], str]] = {
    "an address as a manifest spells it": _address_of_a_manifest,
    "a typing error": _a_typing_error,
    "an SVM that cannot be loaded": _an_unreadable_svm,
    "a page of somebody with an emoji in the name": _a_page_of_an_emoji,
    "a job that has only claimed its folder": _a_job_that_has_only_claimed,
    "a torn write": _a_torn_write,
    "an unfinished upload": _an_unfinished_upload,
    "a folder of their name above the source": _a_folder_above_the_source,
    "a copy of a copy": _a_copy_of_a_copy,
    "the last row of names": _the_last_name,
    "other people's files called 7.jpg": _other_peoples_files,
    "a person called null": _a_name_of_yaml,
}
