"""Forget a person or a photograph: in every artifact below the roots, with a scan at the end that says whether it is so.

**What goes.** Faces, rejects and their place in index, near-duplicates and manifest (counts, label conflicts); vectors;
gallery entries, which are vectors; names that ``jobs/identify.py`` gave. Only files that hold something are written
anew; each folder that loses something gets a new generation, and its old ones are purged. In report.json and run.json
``(erased)`` stands where a name was; numbers stay. An SVM cannot forget and is removed (``jobs/evaluate.py`` makes it
anew), and so are pages that show or name them (``jobs/report.py``, ``jobs/align.py inspect``).

**Whose.** A photograph is its bytes: the same bytes under another URI, or under another name, go with it. A person's
rows are those with their name, and rows without a name whose URI has a folder of that name.

**What stays.** Weights. Models and checkpoints that were trained on them are named, not deleted: train again without
them, and delete the old ones. Such a run cannot be resumed, as its faces are gone. Faces of *other* photographs that
were recognised as the person lose the name and stay (``--source`` erases each). So do the photographs themselves, and
lists of them (a manifest given as ``--source`` to alignment), which are not ours: as long as they are in the source,
alignment makes their faces again. Nothing outside the roots is looked at; copies, backups and old versions that a
bucket keeps are outside.

**Killed anywhere**, the same command finishes: a journal in the first root remembers what was found, until it is done.
Every folder's lock is taken first, so nothing is erased under a running job.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from facerec import lock, publish, storage
from facerec.erasure import datasets, documents, forgotten
from facerec.erasure.datasets import Survey
from facerec.erasure.forgotten import Forgotten
from facerec.errors import ConfigError
from facerec.lock import Fence


@dataclass(frozen=True, kw_only=True)
class EraseConfig:
    """A person or a photograph, and where to forget them."""

    identity: str | None = None
    """The person's name, as faces carry it."""
    source: str | None = None
    """In the name's place, the URI of one photograph, as faces carry it (source_uri)."""
    root: list[str] = field(default_factory=list)
    """Folder below which everything is looked at, local or s3://; give --root again for each further one."""
    dry_run: bool = False
    """Say what would go, and change nothing."""

    def __post_init__(self) -> None:
        if bool(self.identity) == bool(self.source):
            raise ConfigError("who or what is to be erased? Choose one: --identity NAME or --source URI")
        if not self.root:
            raise ConfigError("no folder given to erase from; name at least one (--root)")
        for root in self.root:
            if not storage.exists(storage.absolute(root)):
                raise ConfigError(f"{root} does not exist; name a folder that holds artifacts (--root)")
            if os.path.isfile(storage.absolute(root)):
                raise ConfigError(f"{root} is a file; name a folder that holds artifacts (--root)")


@dataclass(frozen=True)
class Plan:
    """What there is to do."""

    forgotten: Forgotten
    surveys: list[Survey]
    """All published folders: each is purged, also one where only a killed run left something."""
    removed: list[str]
    """SVMs and pages."""
    masked: list[str]
    """Reports and records of runs."""
    trained: list[str]
    """Models and checkpoints that were trained on them."""

    def __bool__(self) -> bool:
        return any(self.surveys) or bool(self.removed or self.masked)


def erase(config: EraseConfig) -> list[str]:
    """Erase, print what went, and give the files that still mention what was to be forgotten: none, if all is well.

    Raises BusyError before anything is changed where a job writes into one of the folders.
    """
    roots = sorted({storage.absolute(root) for root in config.root})
    plan = _plan(config, roots)
    if config.dry_run:
        _say(plan, "would go")
        return []
    with contextlib.ExitStack() as held:
        fences = {}
        for folder in _to_lock(plan):
            hold = publish.exclusive if publish.current(folder) else lock.exclusive
            fences[folder] = held.enter_context(hold(folder, "--root"))
        plan = _plan(config, roots)  # a job may have published something before it gave us its folder
        journal = _journal(config, roots)
        storage.write_json(journal, plan.forgotten.to_json() | {"trained": plan.trained})
        _say(plan, "goes")
        _carry_out(plan, fences)
        storage.remove_file(journal)
    left = leftovers(roots, plan.forgotten)
    _say_source(plan.forgotten)
    return left


def leftovers(roots: list[str], what: Forgotten) -> list[str]:
    """Files below the roots in which a name, URI or face id of what is forgotten occurs."""
    return [uri for uri in _files(roots) if documents.mentions(uri, what)]


def _plan(config: EraseConfig, roots: list[str]) -> Plan:
    files = _files(roots)
    tables = [uri for uri in files if uri.endswith(".parquet")]
    spellings = frozenset([config.source, storage.absolute(config.source)]) if config.source else frozenset()
    found, trained = forgotten.find(tables, config.identity, spellings), list[str]()
    if storage.exists(_journal(config, roots)):
        said = storage.read_json(_journal(config, roots))
        found, trained = found | Forgotten.from_json(said), said["trained"]
    surveys = [datasets.survey(folder, found) for folder in _published(files)]
    for uri in files:
        if uri.endswith("/run.json") and documents.trained_on(storage.read_json(uri), found):
            trained = [*trained, *documents.weights(uri.removesuffix("/run.json"), files)]
    return Plan(
        found,
        surveys,
        [uri for uri in files if documents.removable(uri, found)],
        [uri for uri in files if documents.is_report(uri) and documents.mentions(uri, found)],
        sorted(set(trained)),
    )


def _carry_out(plan: Plan, fences: dict[str, Fence]) -> None:
    for uri in plan.removed:
        storage.remove_file(uri)
    for found in plan.surveys:
        datasets.erase(fences[found.folder], found, plan.forgotten)
    followed: dict[str, Any] = {}
    for found in plan.surveys:
        followed |= datasets.successors(found.folder)
    for found in plan.surveys:
        datasets.relink(fences[found.folder], followed)
    for uri in plan.masked:
        documents.mask(uri, plan.forgotten, fences.get(uri.removesuffix("/run.json")))


def _to_lock(plan: Plan) -> list[str]:
    """Published folders, and runs whose record changes."""
    runs = [uri.removesuffix("/run.json") for uri in plan.masked if uri.endswith("/run.json")]
    return sorted({*(found.folder for found in plan.surveys), *runs})


def _published(files: list[str]) -> list[str]:
    """Folders with a manifest, or with parts that wait for one."""
    folders = {
        uri.removesuffix("/manifest.json")
        for uri in files
        if uri.endswith("/manifest.json") and "/generations/" not in uri and datasets.is_published(uri)
    }
    return sorted(folders | {uri.rsplit("/parts/", 1)[0] for uri in files if "/parts/" in uri})


def _files(roots: list[str]) -> list[str]:
    """Everything below the roots, each once, without locks."""
    found: Iterator[str] = (uri for root in roots for uri in storage.list_tree(root))
    return sorted({uri for uri in found if not uri.endswith("/.lock")})


def _journal(config: EraseConfig, roots: list[str]) -> str:
    who = hashlib.sha256(f"{config.identity}\x1f{config.source}".encode()).hexdigest()[:12]
    return storage.join(roots[0], f".erasing-{who}.json")


def _say(plan: Plan, verb: str) -> None:
    if not plan:
        print("erase: nothing of it below the roots", flush=True)
    for found in plan.surveys:
        if found:
            print(f"erase: {verb}: {found}", flush=True)
    for uri in plan.removed:
        print(f"erase: {verb}: {uri}, which cannot forget; make it again", flush=True)
    for uri in plan.masked:
        print(f"erase: {verb}: the name in {uri}", flush=True)
    for uri in plan.trained:
        print(f"erase: stays: {uri} was trained on them; train again without them and delete it", flush=True)


def _say_source(what: Forgotten) -> None:
    there = [uri for uri in sorted(what.uris) if storage.exists(uri)]
    if there:
        print(
            f"erase: WARNING: {len(there)} of {len(what.uris)} photographs are still in their source ({there[0]}, ...): "
            f"remove them, or alignment brings them back",
            flush=True,
        )
