"""Sources as people have them: spellings, links, what network drives leave, manifests of other tools, wrong addresses."""

from __future__ import annotations

import errno
import os
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from facerec import access, decoding, storage
from facerec.alignment import sources
from facerec.alignment.aligner import Aligner
from facerec.alignment.config import AlignConfig
from facerec.errors import ConfigError, SourceError, StorageError
from facerec.photographs import as_table
from facerec.synthetic import render
from tests.alignment.test_alignment import touch

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "José") for form in ("NFC", "NFD"))


def people(listing: sources.Listing) -> dict[str, str | None]:
    """Identity by file name."""
    return {row["source_uri"].rsplit("/", 1)[1]: row["identity"] for row in listing.photographs.to_pylist()}


def manifest(tmp_path: Path, *rows: str) -> str:
    (tmp_path / "list.csv").write_text("\n".join(["uri,identity", *rows, ""]))
    return str(tmp_path / "list.csv")


def test_folders_of_one_name_in_two_spellings_are_one_person_and_uris_keep_their_bytes(
    tmp_path: Path,
) -> None:
    touch(
        tmp_path, f"{COMPOSED}/1.jpg", f"{DECOMPOSED}/2.jpg", "Ada/3.jpg", "Ada /4.jpg", "Bo/5.jpg", " /6.jpg"
    )
    listing = sources.list_photographs(str(tmp_path))
    assert people(listing) == {
        "1.jpg": COMPOSED, "2.jpg": COMPOSED, "3.jpg": "Ada", "4.jpg": "Ada", "5.jpg": "Bo", "6.jpg": None
    }  # fmt: skip
    assert all(Path(uri).exists() for uri in listing.photographs["source_uri"].to_pylist())
    assert listing.merged == 2
    assert listing.notes()[0].startswith("2 identities differ from others only in spelling")


def test_identities_of_a_manifest_are_compared_in_the_same_way(tmp_path: Path) -> None:
    rows = [f"1.jpg,{COMPOSED}", f"2.jpg,{DECOMPOSED} ", "3.jpg,  ", "4.jpg,None"]
    listing = sources.list_photographs(manifest(tmp_path, *rows))
    assert people(listing) == {"1.jpg": COMPOSED, "2.jpg": COMPOSED, "3.jpg": None, "4.jpg": "None"}
    assert listing.merged == 1


LEFT_BEHIND = (
    "@eaDir/1.jpg/SYNOFILE_THUMB_XL.jpg",
    "Ada/@eaDir/1.jpg/SYNOFILE_THUMB_M.jpg",
    "Ada/SYNOFILE_THUMB_M.jpg",
    "#recycle/Bo/1.jpg",
    "$RECYCLE.BIN/S-1-5-21/1.jpg",
    ".Trash-1000/files/1.jpg",
    ".Trashes/501/1.jpg",
    "Ada/.Trash/1.jpg",
    "System Volume Information/1.jpg",
    "lost+found/1.jpg",
    "__MACOSX/Ada/._1.jpg",
    "Ada/._1.jpg",
    "Ada/Thumbs.db",
)


def test_what_drives_and_systems_leave_behind_is_nobody(tmp_path: Path) -> None:
    touch(tmp_path, "Ada/1.jpg", *LEFT_BEHIND)
    listing = sources.list_photographs(str(tmp_path))
    assert people(listing) == {"1.jpg": "Ada"}
    assert listing.ignored == len(LEFT_BEHIND)


def test_an_unreadable_folder_that_would_be_ignored_does_not_stop_a_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "Ada/1.jpg", ".Spotlight-V100/1.jpg", "lost+found/1.jpg", "Ada/.secret/1.jpg")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith(("V100", "found", "secret")):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = sources.list_photographs(str(tmp_path))
    assert (people(listing), listing.ignored) == ({"1.jpg": "Ada"}, 3)


@pytest.mark.parametrize("link", ["Aaron", "Zoe", "Ada/again"])
def test_a_link_never_takes_a_real_folders_name(tmp_path: Path, link: str) -> None:
    """Also where the link comes first in the alphabet."""
    touch(tmp_path, "Bo/1.jpg", "Ada/2.jpg")
    (tmp_path / link).symlink_to(tmp_path / "Bo")
    listing = sources.list_photographs(str(tmp_path))
    assert people(listing) == {"1.jpg": "Bo", "2.jpg": "Ada"}
    assert listing.unfollowed == 1
    assert "1 links to folders were not followed" in listing.notes()[0]


def test_links_out_of_the_source_are_followed_once_and_links_to_what_holds_it_never(tmp_path: Path) -> None:
    touch(tmp_path, "pool/Cy/1.jpg", "pool/Cy/loop.txt", "elsewhere/9.jpg", "people/Ada/2.jpg")
    root = tmp_path / "people"
    (root / "Ada" / "deep").symlink_to(tmp_path / "pool" / "Cy")
    (root / "Cy").symlink_to(tmp_path / "pool" / "Cy")
    (tmp_path / "pool" / "Cy" / "up").symlink_to(root)
    (root / "all").symlink_to(tmp_path)
    listing = sources.list_photographs(str(root))
    assert people(listing) == {"1.jpg": "Cy", "2.jpg": "Ada"}  # the link that is nearer to the root names it
    assert listing.unfollowed == 3


def test_a_link_to_a_drive_that_is_not_mounted_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "Ada/1.jpg")
    (tmp_path / "Bo").symlink_to(tmp_path / "not mounted")
    (tmp_path / "Ada" / "2.jpg").symlink_to(tmp_path / "not mounted" / "2.jpg")
    listing = sources.list_photographs(str(tmp_path))
    assert people(listing) == {"1.jpg": "Ada", "2.jpg": "Ada"}
    assert (listing.broken, listing.absent) == (1, 1)
    assert len(listing.notes()) == 2


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_a_disk_that_fails_while_it_is_listed_stops_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    touch(tmp_path, "Ada/1.jpg", "Bo/2.jpg")
    monkeypatch.setattr(access, "PAUSES", (0.0, 0.0))
    works, failures = getattr(os, call), [3]

    def fails(path: str, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith(("Bo", "2.jpg")) and failures[0] > 0:
            failures[0] -= 1
            raise OSError(code, os.strerror(code), path)
        return works(path, *arguments, **options)

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(StorageError, match=f"{os.strerror(code)} .3 attempts"):
        sources.list_photographs(str(tmp_path))
    failures[0] = 2
    assert people(sources.list_photographs(str(tmp_path))) == {"1.jpg": "Ada", "2.jpg": "Bo"}


def test_a_picture_of_several_frames_is_read(tmp_path: Path) -> None:
    """What many cameras and phones write (.mpo): the first frame counts."""
    left, right = (Image.fromarray(render(number, 0)) for number in (0, 1))
    (tmp_path / "Ada").mkdir()
    left.save(tmp_path / "Ada" / "1.mpo", save_all=True, append_images=[right])
    assert people(sources.list_photographs(str(tmp_path))) == {"1.mpo": "Ada"}
    assert decoding.decode((tmp_path / "Ada" / "1.mpo").read_bytes()).shape == render(0, 0).shape


def test_nobodys_face_is_not_that_of_a_person_called_none(tmp_path: Path) -> None:
    Image.fromarray(render(0, 0)).save(tmp_path / "1.png")
    names = [None, "None", "", "null"]
    part = as_table([str(tmp_path / "1.png")] * len(names), names)
    rows = Aligner(AlignConfig(detector="none"))(part).to_pylist()
    assert len({row["face_id"] for row in rows if row["identity"] != ""}) == 3


def test_rows_of_a_manifest_are_resolved(tmp_path: Path) -> None:
    touch(tmp_path, "people/x.jpg", "lists/y.jpg")
    addresses = ["../people/x.jpg", f"{tmp_path}/lists/./../people/x.jpg", "./y.jpg", "s3://b/a/../c.jpg"]
    rows = "".join(f"{address},Ada,1\n" for address in addresses)
    (tmp_path / "lists" / "list.csv").write_text(f"uri,identity,version\n{rows}")
    listing = sources.list_photographs(f"{tmp_path}/lists/list.csv")
    wanted = [f"{tmp_path}/lists/y.jpg", f"{tmp_path}/people/x.jpg", "s3://b/a/../c.jpg"]
    assert listing.photographs["source_uri"].to_pylist() == wanted


FOREIGN = (
    "gs://bucket/x.jpg",
    "S3://bucket/x.jpg",
    "s3a://bucket/x.jpg",
    "file:///photos/x.jpg",
    "abfs://c@account/x.jpg",
    "hf://datasets/x.jpg",
    "https://host/x.jpg",
    "s3:/bucket/x.jpg",
    r"C:\photos\x.jpg",
    "C:/photos/x.jpg",
    r"\\server\share\x.jpg",
)


@pytest.mark.parametrize("address", FOREIGN)
def test_an_address_that_is_not_supported_is_refused_in_one_line(tmp_path: Path, address: str) -> None:
    with pytest.raises(SourceError, match=r"row 2: .*is not supported; .*--source") as caught:
        sources.list_photographs(manifest(tmp_path, "1.jpg,Ada", f"{address},Bo"))
    assert "\n" not in str(caught.value)
    for attempt in (storage.absolute, storage.read_bytes, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(ConfigError, match="is not supported"):
            attempt(address)


def test_a_password_in_an_address_is_not_repeated(tmp_path: Path) -> None:
    address = "https://me:secret@host/x.jpg"
    with pytest.raises(ConfigError, match=r"https://\.\.\. is not supported") as caught:
        storage.absolute(address)
    assert "secret" not in str(caught.value)
    with pytest.raises(SourceError, match=r"row 1: https://\.\.\. is not supported") as refused:
        sources.list_photographs(manifest(tmp_path, f"{address},Ada"))
    assert "secret" not in str(refused.value)


def test_a_home_folder_is_for_the_command_line_alone(tmp_path: Path) -> None:
    assert storage.absolute("~/x") == str(Path.home() / "x")
    with pytest.raises(SourceError, match=r"row 1: ~/x\.jpg begins with ~"):
        sources.list_photographs(manifest(tmp_path, "~/x.jpg,Ada"))


def test_names_that_only_look_like_addresses_are_files(tmp_path: Path) -> None:
    touch(tmp_path, "12:30.jpg", "a~b.jpg", "Ada: holidays/1.jpg")
    listing = sources.list_photographs(
        manifest(tmp_path, "12:30.jpg,Ada", "a~b.jpg,Ada", "Ada: holidays/1.jpg,Ada")
    )
    assert (listing.photographs.num_rows, listing.absent) == (3, 0)


STRINGS = pa.array(["1.jpg", "2.jpg"])
BAD_PARQUET = {
    "3 columns uri": pa.table([STRINGS, STRINGS, STRINGS, STRINGS], names=["uri", "identity", "uri", "uri"]),
    "identity is of type list": pa.table({"uri": STRINGS, "identity": [["Ada"], ["Bo"]]}),
    "identity is of type struct": pa.table({"uri": STRINGS, "identity": [{"name": "Ada"}, {"name": "Bo"}]}),
    "uri is of type binary": pa.table({"uri": [b"1.jpg", b"\xff.jpg"], "identity": STRINGS}),
    "identity is of type double": pa.table({"uri": STRINGS, "identity": [1.0, None]}),
    "version is of type timestamp": pa.table(
        {"uri": STRINGS, "identity": STRINGS, "version": pa.array([0, 1], pa.timestamp("s"))}
    ),
    "missing: identity": pa.table({"uri": STRINGS, "name": STRINGS}),
    "2 rows without uri": pa.table({"uri": ["", None], "identity": STRINGS}),
}


@pytest.mark.parametrize("words", BAD_PARQUET)
def test_a_parquet_manifest_that_cannot_be_used_is_one_line(tmp_path: Path, words: str) -> None:
    pq.write_table(BAD_PARQUET[words], tmp_path / "list.parquet")
    refused(str(tmp_path / "list.parquet"), words)


BAD_CSV = {
    "2 columns identity": b"uri,identity,identity\n1.jpg,Ada,Bo\n",
    "Expected 2 columns, got 3": b"uri,identity\n1.jpg,Ada,Bo\n2.jpg,Cy\n",
    "UTF8": "uri,identity\n1.jpg,José\n".encode("latin-1"),
    "Expected 2 columns, got 1": "uri,identity\n1.jpg,Ada\n".encode("utf-16"),
    "Empty CSV": b"",
    "missing: uri": b"identity\nAda\n",
}


@pytest.mark.parametrize("words", BAD_CSV)
def test_a_csv_manifest_that_cannot_be_used_is_one_line(tmp_path: Path, words: str) -> None:
    (tmp_path / "list.csv").write_bytes(BAD_CSV[words])
    refused(str(tmp_path / "list.csv"), words)


def test_a_damaged_manifest_is_one_line(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"uri": STRINGS, "identity": STRINGS}), tmp_path / "whole.parquet", compression="zstd"
    )
    data = bytearray((tmp_path / "whole.parquet").read_bytes())
    data[10:40] = bytes(30)
    for damaged in (b"PAR1", bytes(data[:-20]), bytes(data), b"uri,identity\n"):
        (tmp_path / "list.parquet").write_bytes(damaged)
        refused(str(tmp_path / "list.parquet"), "cannot be read as a manifest")


def test_text_of_any_kind_and_whole_numbers_are_names(tmp_path: Path) -> None:
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"uri": STRINGS.cast(kind), "identity": [7, 8]}), tmp_path / "list.parquet")
        assert people(sources.list_photographs(str(tmp_path / "list.parquet"))) == {
            "1.jpg": "7",
            "2.jpg": "8",
        }


@pytest.mark.parametrize("flag", ["--source", "--photos"])
def test_a_refusal_names_the_flag_that_was_given(tmp_path: Path, flag: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    (tmp_path / "list.csv").write_text("uri\n1.jpg\n")
    for name in ("empty", "file.txt", "missing", "missing.csv", "list.csv"):
        with pytest.raises(SourceError, match=flag):
            sources.list_photographs(str(tmp_path / name), flag)


def refused(source: str, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        sources.list_photographs(source)
    assert str(caught.value).isprintable()
    assert source in str(caught.value)
    assert len(str(caught.value)) < 600
