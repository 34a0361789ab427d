"""Forget a person or a photograph in every artifact below the roots, and check afterwards what is left.

**By record.** What an artifact shows is read from its columns, its known fields or its record (facerec/records.py). No
name is searched for in anything that facerec wrote, so a person called "people" or "1" changes no key and no number.
Whose a row is, and how far copies are followed, is said in forgotten.py.

**What goes.** Faces, rejects and their place in index, near-duplicates and manifest (counts, label conflicts); vectors;
gallery entries, which are vectors; names that jobs/identify.py gave. Each folder that loses something gets a new
generation, and its old ones are purged. In report.json and run.json ``(erased)`` stands where the name was; numbers stay.
SVMs that know them and pages that show them are removed: make them again with jobs/evaluate.py, jobs/report.py and
jobs/align.py inspect. Torn writes and unfinished uploads below the roots are removed always, as nobody can say what they
hold.

**What stays.** Weights: models, checkpoints and exports that were trained on them are listed, not deleted. Faces of other
photographs that were recognised as the person lose the name and stay. Photographs are not ours, nor are files that
facerec did not write: these are searched as text and named if they mention what is forgotten.

**Fail closed.** What is ours and cannot be read is listed at the end; everything else is carried out nevertheless. All
folders that a job has claimed are locked first, so nothing is erased under a running job. Killed anywhere, the same
command finishes: a journal in the root that comes first in alphabetical order keeps what was found until nothing of ours is left.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

from facerec import lock, publish, records, s3, storage
from facerec.erasure import datasets, foreign, forgotten, inventory
from facerec.erasure.datasets import Survey
from facerec.erasure.forgotten import Forgotten
from facerec.erasure.inventory import Inventory
from facerec.errors import ConfigError, FacerecError
from facerec.lock import Fence
from facerec.photographs import canonical, resolved

ERASED = "(erased)"
"""Stands in report.json and run.json where a name or a face id was."""
SHAPED = (("split", "train", "*"), ("split", "validation", "*"))
"""Where run.json names those who shaped its weights: who was trained on, and who chose the checkpoint."""
REMEDY = "remove it, or let its job make it again, and run the same command once more"


@dataclass(frozen=True, kw_only=True)
class EraseConfig:
    """A person or a photograph, and where to forget them."""

    identity: str = ""
    """The person's name, as the faces carry it."""
    source: str = ""
    """Instead of a name, the address of one photograph, as the faces carry it (source_uri)."""
    root: list[str] = field(default_factory=list)
    """Folder below which everything is looked at, local or s3://; give --root again for each further one."""
    dry_run: bool = False
    """Say what would go, and change nothing."""

    def __post_init__(self) -> None:
        if bool(canonical(self.identity)) == bool(self.source):
            raise ConfigError("who or what is to be erased? Choose one: --identity NAME or --source URI")
        if not self.root:
            raise ConfigError("no folder given to erase from; name at least one (--root)")
        for root in self.root:
            if not storage.exists(storage.absolute(root)):
                raise ConfigError(f"{root} does not exist; name a folder that holds artifacts (--root)")
            if os.path.isfile(storage.absolute(root)):
                raise ConfigError(f"{root} is a file; name a folder that holds artifacts (--root)")

    @property
    def wanted(self) -> Forgotten:
        """Before anything is looked for."""
        if self.identity:
            return Forgotten(canonical(self.identity))
        return Forgotten("", uris=frozenset(map(resolved, [self.source, storage.absolute(self.source)])))


@dataclass(frozen=True)
class Plan:
    """What there is to do."""

    below: Inventory
    forgotten: Forgotten
    surveys: list[Survey]
    """Of all folders: each is purged, also where only a killed job left something."""
    removed: list[str]
    """SVMs and pages."""
    masked: list[str]
    """Reports and records of runs."""
    trained: list[str]
    """Weights that were trained on them."""
    uploads: list[tuple[str, str]]
    """Unfinished ones, of anything."""
    mentioned: list[str]
    """Files that facerec did not write."""
    problems: dict[str, str]
    """What cannot be read or decided, and why."""
    known: set[str]
    """Names of everybody below the roots, canonical."""


def erase(config: EraseConfig) -> list[str]:
    """Erase, print what goes, and give a line for everything that is left or mentions them: none if all is well.

    Raises ConfigError, before anything is changed, for somebody who is nowhere below the roots, and BusyError where a job
    writes into one of the folders.
    """
    roots = sorted({storage.absolute(root) for root in config.root})
    plan = _plan(config, roots)
    journal = _journal(config, roots)
    _require_known(config, plan, journal)
    if config.dry_run:
        _say(plan, "would go")
        return []
    with contextlib.ExitStack() as held:
        fences = _lock_all(plan.below, roots, held)
        plan = _plan(config, roots)  # a job may have published something before it gave us its folder
        storage.write_json(journal, plan.forgotten.to_json() | {"trained": plan.trained})
        _say(plan, "goes")
        _carry_out(plan, fences)
        now = _plan(config, roots)
        left = _left(now, fences)
        if left:
            left.append(f"what is theirs stays in {journal} until the same command has finished")
        else:
            storage.remove_file(journal)
    _say_source(plan.forgotten)
    if not left and not now.mentioned:
        print(_checked(plan, roots), flush=True)
    return left + [f"MENTIONED in {uri}, which facerec did not write" for uri in now.mentioned]


def _plan(config: EraseConfig, roots: list[str]) -> Plan:
    below = inventory.look(roots)
    found, known = forgotten.find(below.tables, config.wanted, below.roots)
    trained: list[str] = []
    journal = _journal(config, roots)
    if storage.exists(journal):
        said = storage.read_json(journal)
        found, trained = found | Forgotten.from_json(said, journal), said.get("trained", [])
    surveys = [datasets.survey(folder, found, below.roots) for folder in below.folders]
    problems = dict(below.damaged)
    for survey in surveys:
        problems |= survey.damaged
        problems |= {uri: _undecided(count, found) for uri, count in survey.undecided.items()}
    problems |= {
        uri: "an erasure was killed; run the command that left this journal again"
        for uri, other in below.journals.items()
        if uri != journal and (other.names & found.names or other.uris & found.uris)
    }
    shown = {uri: _shown_in(said, uri) for uri, said in below.documents.items()}
    known |= {
        canonical(name) for each in [*below.shown.values(), *shown.values()] for name in each.identities
    }
    return Plan(
        below,
        found,
        surveys,
        [uri for uri, each in below.shown.items() if _goes(uri, each, found)],
        [uri for uri, each in shown.items() if found.shown_in(each)],
        sorted({*trained, *_trained(below, surveys, found, problems)}),
        inventory.uploads(roots, problems),
        foreign.mentioning(below.foreign, found, problems),
        problems,
        known - {ERASED},
    )


def _goes(uri: str, shown: records.Shown, found: Forgotten) -> bool:
    """A page that shows them, or an SVM that knows somebody under whose name one of the photographs stood."""
    if uri.endswith(".skops"):
        return bool(set(map(canonical, shown.identities)) & found.names)
    return found.shown_in(shown)


def _shown_in(said: dict[str, Any], uri: str) -> records.Shown:
    return records.in_run(said) if uri.endswith("/run.json") else records.in_report(said)


def _undecided(count: int, found: Forgotten) -> str:
    return (
        f"{count} rows without a name lie below a folder {found.identity!r}, and nobody knows where their source begins; "
        f"erase each photograph that is theirs (--source URI)"
    )


def _trained(
    below: Inventory, surveys: list[Survey], found: Forgotten, problems: dict[str, str]
) -> list[str]:
    """Models, checkpoints and exports that learnt from them, or whose run let them choose its checkpoint.

    A run says so by its split. Weights without their run say so by the digest of the faces that they were trained on.
    """
    theirs, others, listed = set[str](), set[str](), list[str]()
    by_uri = {each.uri: each for each in below.weights}
    for run, said in below.runs.items():
        people = set(map(canonical, records.strings(said, SHAPED)))
        trained = below.checkpoints(run) if people & found.names else []
        listed += trained
        models = {uri: each.model_id for uri, each in by_uri.items() if uri.startswith(f"{run}/")}
        theirs |= {model for uri, model in models.items() if uri in trained}
        others |= {model for uri, model in models.items() if uri not in trained}
    held = {digest for survey in surveys for digest in survey.digests}
    for each in below.weights:
        if each.model_id in theirs or (each.faces in held and each.model_id not in others):
            listed.append(each.uri)
        elif not each.faces and each.model_id not in others and each.uri.endswith(".onnx"):
            problems[each.uri] = "it does not say which faces its model was trained on"
    return listed


def _require_known(config: EraseConfig, plan: Plan, journal: str) -> None:
    """Raise ConfigError where nothing below the roots is of the person or the photograph; a journal says that there was."""
    found = [*plan.removed, *plan.masked, *plan.trained, *plan.mentioned]
    if found or any(each or each.undecided for each in plan.surveys) or storage.exists(journal):
        return
    flag, wanted = ("--identity", config.identity) if config.identity else ("--source", config.source)
    names = plan.known if config.identity else _addresses(plan.below, config.source)
    near = difflib.get_close_matches(canonical(wanted), names, n=5)
    offered = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    unread = (
        f"; {len(plan.problems)} files cannot be read, {next(iter(plan.problems))} for one"
        if plan.problems
        else ""
    )
    raise ConfigError(
        f"nothing below {', '.join(config.root)} is of {wanted!r}{offered}{unread}; nothing was changed ({flag})"
    )


def _addresses(below: Inventory, wanted: str) -> list[str]:
    """Photographs to offer: those of the same file name, or else some thousand."""
    known: set[str] = set()
    for table in below.tables:
        with contextlib.suppress(*forgotten.DAMAGE):
            rows = forgotten.read_keys(table.uri)
            known |= set(rows["source_uri"].to_pylist()) if "source_uri" in rows.column_names else set()
    uris = sorted(uri for uri in known if uri)
    same = [uri for uri in uris if uri.rpartition("/")[2] == wanted.rpartition("/")[2]]
    return (same or uris)[:5000]


def _lock_all(below: Inventory, roots: list[str], held: contextlib.ExitStack) -> dict[str, Fence]:
    """Hold every folder that a job writes into, also those that a job claims while we wait for others."""
    published = {
        folder.uri for folder in below.folders if folder.manifest or (folder.claim and folder.tables)
    }
    fences, writers = dict[str, Fence](), below.writers
    while missing := sorted(writers - fences.keys()):
        for folder in missing:
            hold = publish.exclusive if folder in published else lock.exclusive
            fences[folder] = held.enter_context(hold(folder, "--root"))
        writers = inventory.claims(roots).writers
    return fences


def _carry_out(plan: Plan, fences: dict[str, Fence]) -> None:
    for uri in [*plan.removed, *plan.below.torn]:
        fence = _fence(uri, fences)
        (fence.remove if fence else storage.remove_file)(uri)
    for uri, upload in plan.uploads:
        if fence := _fence(uri, fences):
            fence.require()
        s3.abort_upload(uri, upload)
    for survey in plan.surveys:
        datasets.erase(fences[survey.folder.uri], survey, plan.forgotten)
    followed: dict[str, Any] = {}
    for survey in plan.surveys:
        followed |= datasets.successors(survey.folder.uri)
    for survey in plan.surveys:
        datasets.relink(fences[survey.folder.uri], followed)
    for uri in plan.masked:
        _mask(uri, plan.forgotten, _fence(uri, fences))


def _fence(uri: str, fences: dict[str, Fence]) -> Fence | None:
    """The hold on the folder that a file belongs to; None for a file that is in no job's folder."""
    return fences.get(inventory.owner(uri, set(fences)))


def _mask(uri: str, found: Forgotten, fence: Fence | None) -> None:
    """Write the document with ERASED where names and face ids were; numbers stay, they were true of all people."""
    said = storage.read_json(uri)

    def name(text: str) -> str:
        return ERASED if found.is_named(text) else text

    def face_id(text: str) -> str:
        return ERASED if text in found.face_ids else text

    if uri.endswith("/run.json"):
        masked = records.changed_run(said, name)
    else:
        masked = records.changed_report(said, name, face_id)
    if "shows" in masked:
        masked["shows"] = {key: sorted({*values} - {ERASED}) for key, values in masked["shows"].items()}
    (fence.write_json if fence else storage.write_json)(uri, masked)


def _left(now: Plan, fences: dict[str, Fence]) -> list[str]:
    """What is left after everything was carried out, a line each."""
    left = [
        f"STILL THERE: {survey}: "
        + ("another version of facerec wrote the folder; remove it" if survey.foreign_schema else REMEDY)
        for survey in now.surveys
        if survey
    ]
    left += [f"STILL THERE: {uri}; {REMEDY}" for uri in [*now.removed, *now.masked, *now.below.torn]]
    left += [f"STILL THERE: an unfinished upload of {uri}; {REMEDY}" for uri, _ in now.uploads]
    left += [f"NOT CHECKED: {uri}: {why}; {REMEDY}" for uri, why in sorted(now.problems.items())]
    begun = sorted(now.below.writers - fences.keys())
    return left + [f"NOT CHECKED: a job has begun to write into {folder}; {REMEDY}" for folder in begun]


def _journal(config: EraseConfig, roots: list[str]) -> str:
    who = hashlib.sha256(f"{canonical(config.identity)}\x1f{config.source}".encode()).hexdigest()[:12]
    return storage.join(roots[0], f".erasing-{who}.json")


def _say(plan: Plan, verb: str) -> None:
    lines = [f"{verb}: {survey}" for survey in plan.surveys if survey]
    lines += [f"{verb}: {uri}; make it again" for uri in plan.removed]
    lines += [f"{verb}: the name in {uri}" for uri in plan.masked]
    lines += [f"{verb}: {uri}, left by a write that was killed" for uri in plan.below.torn]
    lines += [f"{verb}: an unfinished upload of {uri}" for uri, _ in plan.uploads]
    lines += [
        f"stays: {uri} was trained on faces that held them; train again without them and delete it"
        for uri in plan.trained
    ]
    if verb == "would go":
        lines += [f"stays: {uri}: {why}" for uri, why in sorted(plan.problems.items())]
        lines += [f"stays: {uri} mentions them, and facerec did not write it" for uri in plan.mentioned]
    for line in lines:
        print(f"erase: {line}", flush=True)


def _checked(plan: Plan, roots: list[str]) -> str:
    """What was checked, in words."""
    name, count = plan.forgotten.identity, len(plan.below.foreign)
    searched = f"{count} other files were searched as text and do not mention them"
    if name and not foreign.searchable(name):
        searched = (
            f"{count} other files were searched as text for photographs and face ids alone: names of fewer than "
            f"{foreign.SHORTEST} characters or of digits only are not searched for"
        )
    return (
        f"erase: checked below {', '.join(roots)}: the rows, pages, reports, SVMs and runs that facerec wrote hold nothing "
        f"of them any more; {searched}"
    )


def _say_source(found: Forgotten) -> None:
    """Warn of photographs that alignment would bring back. A source that does not answer is no fault of the erasure."""
    try:
        there = [uri for uri in sorted(found.spelled) if storage.exists(uri)]
    except (FacerecError, OSError) as error:
        print(f"erase: WARNING: the source of the photographs cannot be looked at: {error}", flush=True)
        return
    if there:
        print(
            f"erase: WARNING: {len(there)} of {len(found.spelled)} photographs are still in their source "
            f"({there[0]}, ...): remove them, or alignment brings them back",
            flush=True,
        )
