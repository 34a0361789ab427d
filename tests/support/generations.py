"""Published folders for tests: the lock is taken and a generation is begun as a job does it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from facerec import publish
from facerec.publish import Generation


@contextlib.contextmanager
def generation(folder: Path | str) -> Iterator[Generation]:
    """A folder's next generation, with the folder's lock held."""
    with publish.exclusive(str(folder), "--out") as fence:
        yield publish.begin(fence)


def amend(dataset: publish.Dataset, changes: dict[str, Any]) -> publish.Dataset:
    """The dataset, whose manifest now says something else."""
    with publish.exclusive(dataset.folder, "--out") as fence:
        publish.amend(fence, changes)
    return publish.Dataset(dataset.folder, dataset.manifest | changes)
