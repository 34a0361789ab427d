"""A server that speaks S3, in this process, which can fail like the real one does under load."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import boto3
from moto.moto_server import werkzeug_app
from moto.moto_server.utilities import RegexConverter
from werkzeug.serving import make_server

from facerec import s3

ERRORS = {500: "InternalError", 503: "SlowDown"}

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYSECRET"

Respond = Callable[..., Any]


class _AnyKey(RegexConverter):
    """By moto's own pattern no key may hold a line end, which S3 allows."""

    def __init__(self, url_map: Any, *patterns: str) -> None:
        super().__init__(url_map, *(pattern.replace(".+", "[^\0]+") for pattern in patterns))


werkzeug_app.RegexConverter = _AnyKey


@dataclass(frozen=True)
class Fault:
    """A request that ends in an error of the server's; ``late``: after it was carried out."""

    kind: str
    code: int
    late: bool


class Faults:
    """WSGI around moto: a share of the requests fails, half of them late; and so do those that are ``due``.

    Objects whose keys end as one of ``denied`` may be listed, but not read.
    """

    bucket = "s3://faces"

    def __init__(self, seed: int = 0) -> None:
        self.share = 0.0
        self.due: list[Fault] = []
        self.seen: list[Fault] = []
        self.on_body: Callable[[str], None] = lambda _: None
        """Told the kind of each request when its headers are there and its body is not."""
        self.denied: tuple[str, ...] = ()
        self.moto: Respond = werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app)
        self._random = random.Random(seed)
        self._turn = threading.Lock()

    def __call__(self, environ: dict[str, Any], respond: Respond) -> Any:
        """One request at a time, as moto checks a condition and writes in two steps."""
        length = -1 if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
        self.on_body(_kind(environ))
        body = environ["wsgi.input"].read(length)  # before the turn, as a paused client must not keep it
        if len(body) < length:
            respond("400 Bad Request", [("Content-Type", "application/xml")])
            return [b"<Error><Code>IncompleteBody</Code></Error>"]
        environ["wsgi.input"] = io.BytesIO(body)
        if environ["REQUEST_METHOD"] in ("GET", "HEAD") and environ["PATH_INFO"].endswith(self.denied):
            respond("403 Forbidden", [("Content-Type", "application/xml")])
            denied = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [denied]
        with self._turn:
            fault = self._next(_kind(environ))
            if fault is None:
                return list(self.moto(environ, respond))
            self.seen.append(fault)
            if fault.late:
                list(self.moto(environ, lambda *_: None))
        respond(f"{fault.code} {ERRORS[fault.code]}", [("Content-Type", "application/xml")])
        return [f"<Error><Code>{ERRORS[fault.code]}</Code><Message>try again</Message></Error>".encode()]

    def _next(self, kind: str) -> Fault | None:
        drawn = Fault(kind, self._random.choice(sorted(ERRORS)), self._random.random() < 0.5)
        if self._random.random() < self.share:
            return drawn
        for fault in self.due:
            if fault.kind == kind:
                self.due.remove(fault)
                return fault
        return None


def _kind(environ: dict[str, Any]) -> str:
    query = environ["QUERY_STRING"]
    if "upload" in query:
        return "multipart"
    return "list" if "list-type" in query else environ["REQUEST_METHOD"].lower()


@contextlib.contextmanager
def s3_server(setenv: Callable[[str, str], None]) -> Iterator[Faults]:
    """Serve; ``setenv`` is told the endpoint and the credentials. The bucket is there, and empty."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    faults = Faults()
    server = make_server(
        "127.0.0.1", 0, faults, threaded=True, request_handler=werkzeug_app.MotoRequestHandler
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    setenv("AWS_ACCESS_KEY_ID", "test")
    setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    setenv("AWS_DEFAULT_REGION", "us-east-1")
    forget()
    bucket = boto3.resource("s3").Bucket("faces")
    bucket.create()
    bucket.objects.delete()
    try:
        yield faults
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        forget()


def forget() -> None:
    """Let the next request see the environment as it is now."""
    s3.client.cache_clear()
    s3.filesystem.cache_clear()
