"""s3:// through the same verbs, against a server that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer

from facerec import publish, storage
from facerec.alignment import sources


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="faces")
    storage._s3.cache_clear()
    yield "s3://faces"
    storage._s3.cache_clear()
    server.stop()


def test_files_tables_and_manifests_live_in_s3_as_on_disk(bucket: str) -> None:
    folder = f"{bucket}/set"
    assert not storage.exists(folder)
    assert storage.list_files(folder) == []
    table = pa.table({"a": [1, 2]})
    storage.write_table(f"{folder}/generations/0001/rows.parquet", table)
    entry = publish.describe(folder, "generations/0001/rows.parquet", "faces", 2)
    publish.publish(folder, 1, [entry], {"preprocessing": {}})
    dataset = publish.open_dataset(folder, "jobs/align.py")
    assert dataset.read("faces").equals(table)
    assert storage.list_folders(f"{folder}/generations") == [f"{folder}/generations/0001"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{folder}/missing")


def test_photographs_are_listed_from_s3_a_folder_a_person(bucket: str) -> None:
    for name in ("photos/Ada/1.jpg", "photos/Bo B/x/2.png", "photos/notes.txt", "elsewhere/3.jpg"):
        storage.write_bytes(f"{bucket}/{name}", b"x")
    listing = sources.list_photographs(f"{bucket}/photos/")
    assert listing.photographs.to_pylist() == [
        {"source_uri": f"{bucket}/photos/Ada/1.jpg", "identity": "Ada"},
        {"source_uri": f"{bucket}/photos/Bo B/x/2.png", "identity": "Bo B"},
    ]
    assert listing.ignored == 1
