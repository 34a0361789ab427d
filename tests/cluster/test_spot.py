"""The spot watcher hears EC2's notice, and only that. That Ray hears of it then is tests/training/test_notice.py."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.spot import seconds_left
from tests.support.metadata import serve


@contextmanager
def metadata(seconds: float | None) -> Iterator[str]:
    server = serve(seconds)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("seconds", [0.0, 30.0, 120.0])
def test_the_seconds_of_a_notice_are_read(seconds: float) -> None:
    with metadata(seconds) as url:
        left = seconds_left(url)
    assert left is not None
    assert seconds - 3 <= left <= seconds + 1


def test_without_a_notice_or_an_answer_there_is_none() -> None:
    with metadata(None) as url:
        assert seconds_left(url) is None
    assert seconds_left(url) is None, "nobody listens there any more"
