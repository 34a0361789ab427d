"""A published folder (faces, embeddings, names) without what is forgotten.

Only files that lose something are written again: parts in their place, files of the current generation as part of a new
one, which goes on naming all other files where they are. Publishing each stage again from filtered parts would be simpler.
It would cost as much as the whole data set for one person (10^8 photographs are planned for), and erasure may not import
the stages. Then the old generations go: their manifests, and every file that no generation names any more. The manifest
keeps their digests (``erased``), so that what was made from them is still known to belong here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from facerec import photographs, publish, schema, storage
from facerec.erasure.forgotten import DAMAGE, Forgotten, read_keys
from facerec.erasure.inventory import Folder, digests_of, fault
from facerec.erasure.tables import Loss, Moved, loss, regrouped, reindexed, without
from facerec.errors import DatasetError
from facerec.lock import Fence

SHARDED = ("faces", "embeddings", "names")
"""Kinds that may be many files. A file without rows is dropped, except for the last one of its kind."""
HEAD = ("schema_version", "code_version", "generation", "writer", "history", "files")
"""What a new generation does not take over."""


@dataclass(frozen=True)
class Survey:
    """What a folder would lose."""

    folder: Folder
    parts: dict[str, Loss]
    """What each part loses, by URI. Parts that lose nothing are left out."""
    files: dict[str, Loss]
    """The same for files of generations, also of old generations that a run may have pinned."""
    live: set[str]
    """Files that a generation names."""
    conflicts: bool
    """Whether a manifest lists the person or a photograph among its label conflicts."""
    undecided: dict[str, int]
    """Rows without a name of which nobody can say whether they are the person's, by file."""
    damaged: dict[str, str]
    """Files that cannot be read, and why."""
    digests: set[str]
    """Digests of the generations that hold some of these rows. Models keep the digest of the faces they were trained on."""

    @property
    def foreign_schema(self) -> bool:
        """Whether another version of facerec published the folder: its generations cannot be continued."""
        return bool(self.folder.manifest and _is_foreign(self.folder.manifest))

    @property
    def generations(self) -> bool:
        """Whether a generation holds something of it."""
        return self.conflicts or bool(self.files.keys() & self.live)

    def __bool__(self) -> bool:
        return bool(self.parts or self.files or self.conflicts)

    def __str__(self) -> str:
        rows, called = Counter[str](), 0
        for entry in (self.folder.manifest or {}).get("files", []):
            lost = self.files.get(storage.join(self.folder.uri, entry["path"]))
            if lost and entry["kind"] != "index":
                rows[entry["kind"]] += int((~lost.keep).sum())
                called += lost.called
        said = [f"{count} {kind}" for kind, count in rows.items() if count]
        said += [f"{called} names of other faces"] if called else []
        said += [f"rows of {len(self.parts)} parts"] if self.parts else []
        return (
            f"{self.folder.uri}: {', '.join(said) or 'files of old generations and of jobs that were killed'}"
        )


def survey(folder: Folder, forgotten: Forgotten, roots: list[str]) -> Survey:
    """Look, and change nothing."""
    copies = _copies(folder.uri)
    damaged = {uri: "it is not a sound manifest" for uri, said in copies.items() if said is None}
    manifests = [folder.manifest or {}, *(said for said in copies.values() if said)]
    lost, undecided = dict[str, Loss](), dict[str, int]()
    for table in folder.tables:
        try:
            rows = read_keys(table.uri)
        except FileNotFoundError:
            continue
        except DatasetError as error:
            damaged[table.uri] = str(error)
            continue
        if found := loss(rows, forgotten):
            lost[table.uri] = found
        if unsure := forgotten.undecided(table, rows, roots):
            undecided[table.uri] = unsure
    named = [
        {storage.join(folder.uri, entry["path"]) for entry in said.get("files", [])} for said in manifests
    ]
    parts = {uri: found for uri, found in lost.items() if uri.startswith(f"{folder.uri}/parts/")}
    return Survey(
        folder,
        parts,
        {uri: found for uri, found in lost.items() if uri not in parts},
        set().union(*named),
        any(_conflicting(said, forgotten) for said in manifests),
        undecided,
        damaged,
        {
            digest
            for said, files in zip(manifests, named, strict=True)
            if files & lost.keys()
            for digest in digests_of(said)
        },
    )


def erase(fence: Fence, found: Survey, forgotten: Forgotten) -> None:
    """Do it, with the folder's lock held. Killed anywhere and begun again, it ends the same.

    What cannot be read stays as it is; a survey afterwards says so.
    """
    if found.generations and found.folder.manifest and not found.foreign_schema:
        _publish_without(fence, publish.Dataset(fence.folder, found.folder.manifest), found, forgotten)
    for uri, lost in found.parts.items():
        try:
            table, groups = without(uri, lost, forgotten)
        except DAMAGE:
            continue
        if table.num_rows:
            fence.write(uri, storage.parquet(table, groups))
        else:
            fence.remove(uri)
    purge(fence)


def purge(fence: Fence) -> None:
    """Remove files that no generation names. Where a manifest cannot be read, nobody knows what it names: nothing goes."""
    now, copies = _current(fence.folder), _copies(fence.folder)
    if now is not None and not (now and _is_foreign(now)) and None not in copies.values():
        publish.sweep(fence)


def successors(folder: str) -> dict[str, publish.Dataset]:
    """The digest of the generation that was erased last, and what took its place.

    Empty if alignment has published since: the current generation then has faces that no vector was made of.
    """
    manifest = _current(folder) or {}
    erased = manifest.get("erased", [])
    if not erased or manifest["generation"] != erased[-1]["generation"] + 1:
        return {}
    return {erased[-1]["digest"]: publish.Dataset(folder, manifest)}


def relink(fence: Fence, followed: dict[str, publish.Dataset]) -> None:
    """Say of vectors made from faces that were erased from that they belong to the faces as they are now."""
    said = _current(fence.folder) or {}
    faces = followed.get(said.get("faces_digest") or "")
    if faces and not _is_foreign(said):
        publish.amend(fence, {"faces_digest": faces.digest, "faces_generation": faces.generation})


def _publish_without(fence: Fence, dataset: publish.Dataset, found: Survey, forgotten: Forgotten) -> None:
    folder = dataset.folder
    for uri, said in _copies(folder).items():
        if said is None:
            fence.remove(uri)  # of an earlier generation, which goes
    generation = publish.begin(fence)
    files, moved = {}, dict[str, Moved]()
    for entry in dataset.manifest["files"]:
        files[entry["path"]] = entry
        uri = storage.join(folder, entry["path"])
        lost = found.files.get(uri)
        if lost and entry["kind"] != "index":
            try:
                files[entry["path"]] = _write(generation, folder, entry, lost, forgotten)
            except DAMAGE:
                continue
            if entry["kind"] == "faces":
                moved[_name(entry["path"])] = Moved(lost.keep, storage.row_group_ends(uri))
    for path in dataset.files("index") if moved else []:
        try:
            table = reindexed(storage.read_table(storage.join(folder, path)), moved)
        except DAMAGE:
            continue
        files[path] = generation.write(_name(path), "index", table)
    kept = _without_empty(list(files.values()))
    about = {name: value for name, value in dataset.manifest.items() if name not in HEAD}
    about |= _described(publish.Dataset(folder, {**dataset.manifest, "files": kept}), forgotten)
    generation.publish(kept, about | {"erased": _replaced(dataset)}, alone=True)


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _write(
    generation: publish.Generation, folder: str, entry: dict[str, Any], lost: Loss, forgotten: Forgotten
) -> dict[str, Any]:
    table, groups = without(storage.join(folder, entry["path"]), lost, forgotten)
    if entry["kind"] == "near_duplicates":
        table = regrouped(table)
        groups = [table.num_rows] if table.num_rows else []
    return generation.write(_name(entry["path"]), entry["kind"], table, row_groups=groups)


def _without_empty(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the shards that have no rows, except for the first one of a kind that has none left."""
    there = {entry["kind"] for entry in files if entry["rows"]}
    kept: list[dict[str, Any]] = []
    for entry in files:
        if entry["rows"] or entry["kind"] not in SHARDED or entry["kind"] not in there:
            kept.append(entry)
            there.add(entry["kind"])
    return kept


def _described(now: publish.Dataset, forgotten: Forgotten) -> dict[str, Any]:
    """The manifest's statements that have changed. Of a folder with a damaged file, counts stay as they were."""
    said: dict[str, Any] = {}
    if "label_conflicts" in now.manifest:
        lost = _conflicting(now.manifest, forgotten)
        said["label_conflicts"] = [each for each in now.manifest["label_conflicts"] if each not in lost]
    try:
        if "counts" in now.manifest:
            counts, had = _counts(now), now.manifest["counts"]
            said["counts"] = had | {name: count for name, count in counts.items() if name in had}
        if "listing" in now.manifest:
            said["listing"] = photographs.digest(_listed(now))
    except DAMAGE:
        return said
    return said


def _conflicting(manifest: dict[str, Any], forgotten: Forgotten) -> list[dict[str, Any]]:
    return [
        conflict
        for conflict in manifest.get("label_conflicts", [])
        if conflict["source_hash"] in forgotten.hashes or any(map(forgotten.is_named, conflict["identities"]))
    ]


def _counts(now: publish.Dataset) -> dict[str, Any]:
    """All counts that a manifest of ours may hold, of its files as they are now."""
    rows = Counter[str]()
    for entry in now.manifest["files"]:
        rows[entry["kind"]] += entry["rows"]
    counts: dict[str, Any] = {"faces": sum(rows[kind] for kind in SHARDED)}
    if "names" in rows:
        counts["unknown"] = now.read("names", ["name"])["name"].null_count
        counts["named"] = rows["names"] - counts["unknown"]
        return counts
    listed = _listed(now)
    for level in ("image", "face"):
        reasons = _rejects(now, level)["reason"].value_counts().to_pylist()
        counts[f"{level}_rejects"] = {each["values"]: each["counts"] for each in reasons}
    lost = sum(counts["image_rejects"].values())
    near = [now.read(kind) for kind in ("near_duplicates",) if now.files(kind)]
    return counts | {
        "photographs": listed.num_rows,
        "photographs_with_faces": listed.num_rows - lost,
        "identities": pc.count_distinct(_rows(now, ["identity"])["identity"]).as_py(),
        "near_duplicate_groups": len(set(near[0]["group"].to_pylist())) if near else 0,
    }


def _rows(now: publish.Dataset, columns: list[str]) -> pa.Table:
    """Columns of all faces or vectors."""
    none = pa.schema([schema.ALIGNED.field(name) for name in columns]).empty_table()
    held = [now.read(kind, columns) for kind in ("faces", "embeddings") if now.files(kind)]
    return pa.concat_tables([none, *held])


def _listed(now: publish.Dataset) -> pa.Table:
    """The photographs that are left, as a listing of their source holds them: each has faces or is a reject."""
    columns = schema.PHOTOGRAPHS.names
    rows = pa.concat_tables([_rows(now, columns), _rejects(now, "image").select(columns)])
    return photographs.in_order(rows.group_by(columns).aggregate([]).cast(schema.PHOTOGRAPHS))


def _rejects(now: publish.Dataset, level: str) -> pa.Table:
    rejects = now.read("rejects") if now.files("rejects") else schema.REJECTS.empty_table()
    return rejects.filter(pc.equal(rejects["level"], level))


def _replaced(dataset: publish.Dataset) -> list[dict[str, Any]]:
    """All generations that go, the current one last, after those that went before."""
    earlier = [
        {"generation": said["generation"], "digest": publish.Dataset(dataset.folder, said).digest}
        for said in _copies(dataset.folder).values()
        if said and said["generation"] < dataset.generation
    ]
    earlier.sort(key=lambda each: int(each["generation"]))
    current = {"generation": dataset.generation, "digest": dataset.digest}
    return [*dataset.manifest.get("erased", []), *earlier, current]


def _current(folder: str) -> dict[str, Any] | None:
    """The current manifest; empty where there is none, None where it is damaged."""
    uri = storage.join(folder, "manifest.json")
    return _sound(uri) if storage.exists(uri) else {}


def _copies(folder: str) -> dict[str, dict[str, Any] | None]:
    """The manifests of the generations that the current one still knows, by their URIs, None for a damaged one."""
    history = (_current(folder) or {}).get("history", [])
    uris = [storage.join(folder, entry["path"]) for entry in history]
    return {uri: _sound(uri) for uri in uris if storage.exists(uri)}


def _sound(uri: str) -> dict[str, Any] | None:
    try:
        said = storage.read_json(uri)
    except DatasetError:
        return None
    return None if fault(said) else said


def _is_foreign(manifest: dict[str, Any]) -> bool:
    """Whether another version of facerec wrote it, which this one cannot continue."""
    return bool(manifest["schema_version"] != schema.VERSION)
