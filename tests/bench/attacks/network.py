"""Somebody in another network namespace, and another user of this machine, who want to use a Ray that is not theirs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster.testbed import missing
from tests.bench.attacks import Attempt
from tests.support.knock import Answer
from tests.support.outsider import CLUSTER, HOME, SESSION, Namespaces, harmful, namespaces, running


def attacks() -> Iterator[Attempt]:
    """Every method of every port, of a job's own Ray and of a cluster's head. Needs root, for network namespaces."""
    if lacking := missing():
        print(f"network: not tried: {lacking}", flush=True)
        return
    with (
        tempfile.TemporaryDirectory(prefix="private-", ignore_cleanup_errors=True) as made,
        namespaces() as pair,
    ):
        folder = Path(made)
        with running(pair, SESSION, folder) as token:
            address = f"127.0.0.1:{pair.gcs()}"
            yield _knocks(
                "a job's Ray, from another network, with its token",
                pair.knock(pair.away, HOME, token, folder / "1"),
            )
            yield _knocks(
                "a job's Ray, from this machine", pair.knock(pair.home, "127.0.0.1", "", folder / "2")
            )
            yield _driver("a task in a job's Ray, from this machine", pair, address)
        with running(pair, CLUSTER, folder):
            yield _knocks(
                "a cluster's head, from another network", pair.knock(pair.away, HOME, "", folder / "3")
            )
        ran = sorted(path.name for path in folder.iterdir() if path.name.isdigit())
        yield Attempt("jobs submitted by any of these", bool(ran), f"jobs that ran: {len(ran)}")


def _knocks(what: str, answers: list[Answer]) -> Attempt:
    found = harmful(answers)
    ports = len({port for port, *_ in answers})
    return Attempt(
        what, bool(found), f"{len(answers)} requests to {ports} ports; answered: {found[:5] or 'none'}"
    )


def _driver(what: str, pair: Namespaces, address: str) -> Attempt:
    return Attempt(what, pair.drives(pair.home, address, ""))
