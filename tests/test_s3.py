"""s3:// through the same verbs, against a server that speaks S3: its odd keys, its refusals, its faults."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pytest

from facerec import publish, s3, storage
from facerec.alignment import sources
from facerec.alignment.aligner import Aligner
from facerec.alignment.pipeline import AlignConfig, align_source, plan
from facerec.errors import ConfigError, StorageError
from facerec.synthetic import SyntheticConfig, write_collection
from tests.support.generations import generation
from tests.support.s3 import SECRET, Fault, Faults, Respond, forget, s3_server

ROOT = Path(__file__).parents[1]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    with s3_server(monkeypatch.setenv) as faults:
        yield faults


@pytest.fixture
def bucket(server: Faults) -> str:
    return server.bucket


def test_files_tables_and_manifests_live_in_s3_as_on_disk(bucket: str) -> None:
    folder = f"{bucket}/set"
    assert not storage.exists(folder)
    assert storage.list_files(folder) == []
    table = pa.table({"a": [1, 2]})
    with generation(folder) as made:
        entry = made.write("rows.parquet", "faces", table)
        made.publish([entry], {"preprocessing": {}})
    dataset = publish.open_dataset(folder, "jobs/align.py")
    assert dataset.read("faces").equals(table)
    data = storage.read_bytes(f"{folder}/{made.base}/rows.parquet")
    assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert storage.list_folders(f"{folder}/generations") == [f"{folder}/{made.base}"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{folder}/missing")


def test_photographs_are_listed_from_s3_a_folder_a_person(bucket: str) -> None:
    for name in ("photos/Ada/1.jpg", "photos/Bo B/x/2.png", "photos/notes.txt", "elsewhere/3.jpg"):
        storage.write_bytes(f"{bucket}/{name}", b"x")
    listing = sources.list_photographs(f"{bucket}/photos/")
    etag = hashlib.md5(b"x").hexdigest()
    wanted = [
        {"source_uri": f"{bucket}/photos/Ada/1.jpg", "identity": "Ada", "source_version": etag},
        {"source_uri": f"{bucket}/photos/Bo B/x/2.png", "identity": "Bo B", "source_version": etag},
    ]
    assert listing.photographs.to_pylist() == wanted
    assert listing.ignored == 1
    names = "".join(f"photos/{name},Ada\n" for name in ("Ada/1.jpg", "Bo B/x/2.png", "gone.jpg"))
    storage.write_bytes(f"{bucket}/list.csv", f"uri,identity\n{names}".encode())
    listed = sources.list_photographs(f"{bucket}/list.csv").photographs
    assert listed["source_version"].to_pylist() == [etag, etag, None]


def test_keys_of_any_letters_are_listed_and_read_back(bucket: str) -> None:
    names = [
        "a b",
        "'q\"",
        "ü日本🙂",
        "line\nend",
        "cr\rlf",
        "100%25",
        "%",
        "p+q",
        "e?#x&y=z",
        "<&>;",
        "tab\t",
    ]
    keys = [f"photos/{name}/{name}.jpg" for name in names]
    for key in keys:
        boto3.client("s3").put_object(Bucket="faces", Key=key, Body=key.encode())
    photographs = sources.list_photographs(f"{bucket}/photos").photographs.to_pylist()
    assert sorted(row["identity"] for row in photographs) == sorted(name.strip() for name in names)
    assert sorted(storage.read_bytes(row["source_uri"]).decode() for row in photographs) == sorted(keys)


def test_a_key_that_arrow_cannot_spell_is_a_missing_file(bucket: str) -> None:
    boto3.client("s3").put_object(Bucket="faces", Key="a//b.jpg", Body=b"x")
    with pytest.raises(FileNotFoundError, match="a//b"):
        storage.read_bytes(f"{bucket}/a//b.jpg")


@pytest.mark.parametrize(
    "uri", [f"s3://key:{SECRET}@faces/photos", f"s3://key:ab/{SECRET}@faces", f"s3://{SECRET}@faces"]
)
def test_an_address_with_credentials_is_refused_and_not_repeated(tmp_path: Path, uri: str) -> None:
    (tmp_path / "list.csv").write_text(f"uri,identity\n{uri}/1.jpg,Ada\n")
    for attempt in (
        lambda: sources.list_photographs(uri),
        lambda: sources.list_photographs(str(tmp_path / "list.csv")),
        lambda: storage.read_bytes(uri),
        lambda: publish.open_dataset(uri, "jobs/align.py"),
    ):
        with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY") as caught:
            attempt()
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "variables, folder, words",
    [
        ({}, "s3://nobody/photos", "NoSuchBucket.*create the bucket"),
        ({}, "s3://no bucket", "correct the bucket's name"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://faces", "nothing answers.*AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "localhost:9000"}, "s3://faces", "http://host:port"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SHARED_CREDENTIALS_FILE": "", "AWS_EC2_METADATA_DISABLED": "true"},
            "s3://faces",
            "NoCredentials.*AWS_ACCESS_KEY_ID",
        ),
        ({"AWS_PROFILE": "nobody"}, "s3://faces", "ProfileNotFound"),
    ],
)
@pytest.mark.usefixtures("server")
def test_what_the_user_can_mend_is_one_line_within_seconds(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str, words: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    forget()
    started = time.monotonic()
    for attempt in (
        lambda: sources.list_photographs(folder),
        lambda: publish.open_dataset(folder, "jobs/align.py"),
    ):
        with pytest.raises((StorageError, ConfigError), match=words) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 20


def test_a_refusal_of_boto3_or_arrow_is_one_line(server: Faults) -> None:
    with pytest.raises(StorageError, match=r"s3://nobody/x: NoSuchBucket from S3 .*create the bucket"):
        storage.write_bytes("s3://nobody/x", b"x")
    server.moto = _denied
    with pytest.raises(StorageError, match=r"s3://faces/x: ACCESS_DENIED from S3 .*s3:GetObject"):
        storage.read_bytes("s3://faces/x")


def test_a_refused_head_request_names_the_rights_that_are_needed(server: Faults) -> None:
    server.denied = ("secret",)
    with pytest.raises(StorageError, match=r"s3://faces/secret: 403 from S3 .*s3:GetObject"):
        storage.version("s3://faces/secret")


def _denied(_: dict[str, Any], respond: Respond) -> list[bytes]:
    respond("403 Forbidden", [("Content-Type", "application/xml")])
    return [b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"]


def test_every_kind_of_request_is_tried_again_after_500_and_503(
    bucket: str, server: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the server failed before it did what was asked, or after."""
    monkeypatch.setattr(s3, "ONE_REQUEST", 8 * 2**20)
    kinds = ("list", "head", "get", "put", "multipart")
    server.due = [Fault(kind, *fault) for kind in kinds for fault in ((500, True), (503, False))]
    large = secrets.token_bytes(12 * 2**20)
    for name, data in ("large", large), ("small", large[:10]):
        storage.write_bytes(f"{bucket}/Ada/{name}.jpg", data)
        assert storage.read_bytes(f"{bucket}/Ada/{name}.jpg") == data
    assert (
        len(storage.list_files(f"{bucket}/Ada")) == sources.list_photographs(bucket).photographs.num_rows == 2
    )
    assert not server.due


@pytest.mark.usefixtures("ray_local")
def test_an_alignment_through_a_failing_s3_loses_nothing_and_tells_no_secret(
    tmp_path: Path, bucket: str, server: Faults
) -> None:
    """As a job of its own, so that Ray's workers have the environment that a user would give them."""
    write_collection(tmp_path / "photos", SyntheticConfig(identities=5, photographs=4))
    local = align_source(AlignConfig(source=str(tmp_path / "photos"), out=str(tmp_path / "faces"), part=4))
    for path in sorted((tmp_path / "photos").rglob("*.jpg")):
        storage.write_bytes(f"{bucket}/{path.relative_to(tmp_path)}", path.read_bytes())
    server.share = 0.05
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray") as logs:  # Ray's sockets need a short path
        flags = ["--source", f"{bucket}/photos", "--out", f"{bucket}/faces", "--part", "4"]
        job = subprocess.run(
            [sys.executable, "jobs/align.py", *flags],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": logs},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
        said = [path.read_bytes() for path in Path(logs).rglob("*") if path.is_file()]
    assert job.returncode == 0, job.stdout.decode()
    server.share = 0.0
    assert len(server.seen) >= 5
    assert {fault.code for fault in server.seen} == {500, 503}

    aligned = publish.open_dataset(f"{bucket}/faces", "jobs/align.py")
    for kind in ("faces", "rejects"):
        ours, theirs = (_without_address(dataset.read(kind)) for dataset in (aligned, local))
        assert ours.equals(theirs)
    assert aligned.manifest["counts"] == local.manifest["counts"]
    artifacts = [entry.get()["Body"].read() for entry in boto3.resource("s3").Bucket("faces").objects.all()]
    assert len(artifacts) > 20 + 5
    assert len(said) > 5
    assert not any(SECRET.encode() in text for text in [job.stdout, *said, *artifacts])


def write_zeros(uri: str, size: int, one_request: int) -> None:
    s3.ONE_REQUEST = one_request
    storage.write_bytes(uri, bytes(size))


@pytest.mark.parametrize("one_request", [64 * 2**20, 5 * 2**20])
def test_a_write_that_is_killed_leaves_no_object(bucket: str, server: Faults, one_request: int) -> None:
    """SIGKILL when the server has the headers and not all of the body, of one request or of a part of an upload."""
    context = multiprocessing.get_context("spawn")
    writer = context.Process(
        target=write_zeros, args=(f"{bucket}/set/manifest.json", 48 * 2**20, one_request)
    )
    kinds: list[str] = []

    def kill(kind: str) -> None:
        kinds.append(kind)
        if kinds.count("multipart") == 3 or kind == "put":
            os.kill(writer.pid or 0, signal.SIGKILL)

    server.on_body = kill
    writer.start()
    writer.join(120)
    assert writer.exitcode == -signal.SIGKILL
    server.on_body = lambda _: None
    assert not storage.exists(f"{bucket}/set/manifest.json")
    assert storage.list_tree(bucket) == []
    storage.write_bytes(f"{bucket}/set/manifest.json", b"{}")
    assert storage.read_bytes(f"{bucket}/set/manifest.json") == b"{}"


def test_a_refused_object_is_a_reject_and_refused_access_to_all_stops_early(
    tmp_path: Path, bucket: str, server: Faults
) -> None:
    """One object denied, one archived to GLACIER, then all denied; by folder and by manifest."""
    write_collection(tmp_path / "photos", SyntheticConfig(identities=3, photographs=3))
    keys = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "photos").rglob("*.jpg"))
    for key in keys:
        storage.write_bytes(f"{bucket}/{key}", (tmp_path / key).read_bytes())
    archived, denied = keys[0], keys[4]
    for key, body in (archived, (tmp_path / archived).read_bytes()), (f"{denied} tiny.jpg", b"x"):
        boto3.client("s3").put_object(Bucket="faces", Key=key, Body=body, StorageClass="GLACIER")
    server.denied = (denied,)
    rows = "".join(f"{key},{key.split('/')[1]}\n" for key in [*keys, f"{denied} tiny.jpg"])
    storage.write_bytes(f"{bucket}/list.csv", f"uri,identity\n{rows}".encode())
    for source in (f"{bucket}/photos", f"{bucket}/list.csv"):
        config = AlignConfig(source=source, out=str(tmp_path / "out"), detector="none")
        assert plan(config)["to align"] == "10 photographs in 1 parts of up to 200"
        rows = Aligner(config)(sources.list_photographs(source).photographs).to_pylist()
        rejects = [row for row in rows if row["reason"]]
        assert [row["reason"] for row in rejects] == ["unavailable"] * 3
        assert [row["source_uri"] for row in rejects] == [
            f"{bucket}/{key}" for key in (archived, denied, f"{denied} tiny.jpg")
        ]
        assert "restore the object" in rejects[0]["detail"]
        assert "s3:GetObject" in rejects[1]["detail"]
    server.denied = (".jpg",)
    for attempt in (align_source, plan):
        with pytest.raises(StorageError, match=r"none of 10 photographs .* can be opened .*GetObject"):
            attempt(AlignConfig(source=f"{bucket}/photos", out=str(tmp_path / "none"), detector="none"))
    assert not (tmp_path / "none").exists()


def _without_address(table: pa.Table) -> pa.Table:
    return table.drop_columns(["source_uri", "source_version"])
