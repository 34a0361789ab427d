"""How we speak to S3, and to what speaks its protocol: Arrow to read and list, boto3 to write.

Both are set by the variables that boto3 reads, try again with growing pauses, and give what is left after that as a
StorageError of one line. Credentials come from the environment, never from an address: addresses get into artifacts.
"""

from __future__ import annotations

import contextlib
import functools
import os
import uuid
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.config
import pyarrow as pa
import pyarrow.fs
from botocore.exceptions import BotoCoreError, ClientError

from facerec.errors import ConfigError, StorageError

ATTEMPTS = 10
"""Times that S3 is asked, over about a minute, before a request has failed."""
CONNECT_SECONDS, READ_SECONDS = 5, 30
CONNECTIONS = 32
"""Maximum number of concurrent requests."""

OF_ONE_OBJECT = ("403", "404", "accessdenied", "invalidobjectstate", "nosuchkey")
"""Codes that may concern one object alone. An answer to HEAD has no text, and so no code but its number."""
_UNNAMED = ("[code", "ACCESS_DENIED", "UNKNOWN", "response stream")
"""Words in Arrow's messages where it lost the code of a refusal."""
_UNREACHABLE = "nothing answers at the endpoint; correct AWS_ENDPOINT_URL or mend the network"
_ELSEWHERE = "the bucket lies in another region; set AWS_REGION to its own"
_MISNAMED = "correct the bucket's name"
_FORBIDDEN = (
    "the credentials need s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject and s3:DeleteObject below it "
    "(the last two for outputs)"
)
REMEDIES = {
    "403": _FORBIDDEN,  # of a HEAD request, whose answer has no text
    "accessdenied": _FORBIDDEN,
    "authorizationheadermalformed": _ELSEWHERE,
    "connecttimeout": _UNREACHABLE,
    "endpointconnection": _UNREACHABLE,
    "expiredtoken": "log in anew, and the same command goes on",
    "invalidaccesskeyid": "the endpoint does not know the key; correct AWS_ACCESS_KEY_ID or AWS_ENDPOINT_URL",
    "invalidbucketname": _MISNAMED,
    "invalidobjectstate": "restore the object from its archive (GLACIER, DEEP_ARCHIVE)",
    "networkconnection": _UNREACHABLE,
    "nocredentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role",
    "nosuchbucket": "create the bucket, or correct its name or AWS_ENDPOINT_URL",
    "notimplemented": "one writer a folder needs an endpoint with conditional writes (If-None-Match, If-Match)",
    "paramvalidation": _MISNAMED,
    "permanentredirect": _ELSEWHERE,
    "signaturedoesnotmatch": "the secret does not fit the key; correct AWS_SECRET_ACCESS_KEY",
}
"""What to do, by the code of S3, botocore or Arrow without its case, underscores and "Error"."""


UNMET = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey")
"""A condition that does not hold, or that was decided at the same moment for another, or an object that is gone."""
WRITE = "facerec-write"
"""Key of an object's metadata: the id of the write that left it."""
ONE_REQUEST = 64 * 2**20
"""Bytes up to which an object is written by one request. A larger upload can go on after a fault of the network."""


def put(uri: str, data: bytes | pa.Buffer) -> None:
    """Write an object, whole or not at all: it is there when its last byte has arrived.

    A process that is killed leaves nothing, or an unfinished upload, which is no object.
    """
    bucket, key = bucket_and_key(uri)
    with refusals(uri):
        if len(data) <= ONE_REQUEST:
            client().put_object(Bucket=bucket, Key=key, Body=pa.BufferReader(data))
        else:
            client().upload_fileobj(pa.BufferReader(data), bucket, key)


def put_if(uri: str, data: bytes | pa.Buffer, etag: str | None) -> str | None:
    """Write an object if there is one with this ETag, or none (None). Gives the write's id, or None if nothing was written.

    The id is in the object's metadata. An ETag would not do: it is a hash, and another run may write the same bytes.
    """
    bucket, key = bucket_and_key(uri)
    condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
    written = uuid.uuid4().hex
    about = {"Bucket": bucket, "Key": key, "Metadata": {WRITE: written}}
    with refusals(uri):
        try:
            client().put_object(**about, **condition, Body=pa.BufferReader(data))
            return written
        except ClientError as error:
            if error.response["Error"]["Code"] not in UNMET:
                raise
    # A first try may have been carried out and not answered: then the second one finds the object of the first.
    found = _head(uri)
    return written if found and found["Metadata"].get(WRITE) == written else None


def version(uri: str) -> str | None:
    """The ETag of an object; None if it is not there."""
    found = _head(uri)
    return str(found["ETag"]) if found else None


def _head(uri: str) -> Any:
    bucket, key = bucket_and_key(uri)
    with refusals(uri):
        try:
            return client().head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                raise
    return None


def delete(uri: str) -> None:
    """Delete an object, if it is there."""
    bucket, key = bucket_and_key(uri)
    with refusals(uri):
        client().delete_object(Bucket=bucket, Key=key)


def delete_written(uri: str, written: str) -> None:
    """Delete an object if it is that of the write with this id."""
    found, (bucket, key) = _head(uri), bucket_and_key(uri)
    if not found or found["Metadata"].get(WRITE) != written:
        return
    with refusals(uri):
        try:
            client().delete_object(Bucket=bucket, Key=key, IfMatch=found["ETag"])
        except ClientError as error:
            if error.response["Error"]["Code"] not in UNMET:
                raise


def bucket_and_key(uri: str) -> tuple[str, str]:
    """The two parts of an s3:// address. Raises ConfigError, which does not repeat it, if it holds credentials."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            "an s3:// address has ':' or '@' before its first '/'; write s3://bucket/folder alone, and give credentials "
            "by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, by AWS_PROFILE or by the machine's role"
        )
    return bucket, key


def require(folder: str) -> None:
    """Raise StorageError, within seconds, where the bucket is not there or does not let us in; local folders pass.

    The borders call it, so that a wrong address or key is not tried for a minute by each of a hundred workers.
    """
    if not folder.startswith("s3://"):
        return
    bucket, key = bucket_and_key(folder.rstrip("/") + "/")
    with refusals(folder):
        client(attempts=4).list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)


@contextlib.contextmanager
def refusals(uri: str) -> Iterator[None]:
    """What S3 refuses, or does not answer, as StorageError; a file that is not there stays FileNotFoundError."""
    try:
        yield
    except ClientError as error:
        found = error.response["Error"]
        raise _refused(uri, found["Code"], found.get("Message", "")) from None
    except BotoCoreError as error:
        raise _refused(uri, type(error).__name__, str(error)) from None
    except OSError as error:
        code, _, said = str(error).partition("AWS Error ")[2].partition(" during ")
        if not code:
            raise
        if said.startswith("GetObject") and any(words in code + said for words in _UNNAMED):
            begin(uri)  # raises with the code
        raise _refused(uri, code, said) from None


def _refused(uri: str, code: str, said: str) -> StorageError:
    key = code.replace("_", "").lower().removesuffix("error")
    remedy = REMEDIES.get(key, "the same command goes on from here once S3 answers")
    refused = StorageError(f"{uri}: {code} from S3 ({' '.join(said.split())[:200]}); {remedy}")
    refused.code = key
    return refused


def etag(uri: str) -> str | None:
    """The ETag of an object, which changes with its content; None if it is not there or its access is denied."""
    try:
        found = _head(uri)
    except StorageError as error:
        if error.code in OF_ONE_OBJECT:
            return None
        raise
    return etag_of(found) if found else None


def begin(uri: str) -> None:
    """Request an object without reading it; raises StorageError with S3's own code, which Arrow does not always keep."""
    bucket, key = bucket_and_key(uri)
    with refusals(uri):
        client().get_object(Bucket=bucket, Key=key)["Body"].close()


def etag_of(said: dict[str, Any]) -> str:
    """The ETag in an answer of boto3, without its quotation marks."""
    return str(said["ETag"]).strip('"')


def unfinished_uploads(folder: str) -> list[tuple[str, str]]:
    """Multipart uploads below a folder that were begun and neither completed nor aborted: address and upload id of each.

    What was uploaded of them is stored, and no listing of objects shows it.
    """
    bucket, key = bucket_and_key(folder.rstrip("/") + "/")
    with refusals(folder):
        pages = client().get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key)
        return [
            (f"s3://{bucket}/{upload['Key']}", upload["UploadId"])
            for page in pages
            for upload in page.get("Uploads", [])
        ]


def abort_upload(uri: str, upload: str) -> None:
    """Drop what was uploaded so far; an upload that is gone is no error."""
    bucket, key = bucket_and_key(uri)
    with refusals(uri), contextlib.suppress(client().exceptions.NoSuchUpload):
        client().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)


@functools.cache
def client(attempts: int = ATTEMPTS) -> Any:
    """boto3's client, which threads may share; one a process."""
    config = botocore.config.Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=CONNECTIONS,
        s3={"addressing_style": "path" if _endpoint() else "auto"},  # as Arrow does
    )
    return boto3.Session().client("s3", config=config)


@functools.cache
def filesystem() -> Any:
    """Arrow's file system, one a process; by itself it would miss the endpoint."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options = {"region": region, "endpoint_override": _endpoint()}
    return pyarrow.fs.S3FileSystem(
        **{name: value for name, value in options.items() if value},
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
        allow_delayed_open=True,  # a small file is one request, not three
    )


def _endpoint() -> str | None:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError("AWS_ENDPOINT_URL begins with neither http:// nor https://; write http://host:port")
    return url
