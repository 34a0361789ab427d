"""A published folder (faces, embeddings, names) without what is forgotten: parts in place, the rest as a new generation.

Files that hold nothing of it stay where they are, and the new generation names them there. Then the old generations
go: their manifests, and every file that no generation names any more. The manifest remembers their digests
(``erased``), so that what was made of them is still known to belong here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from facerec import photographs, publish, schema, storage
from facerec.erasure.forgotten import Forgotten
from facerec.erasure.tables import Loss, Moved, loss, regrouped, reindexed, without
from facerec.errors import DatasetError
from facerec.lock import Fence

SHARDED = ("faces", "embeddings", "names")
"""Kinds of many files: one that nothing is left of is dropped, but for the last."""
HEAD = ("schema_version", "code_version", "generation", "writer", "history", "files")


@dataclass(frozen=True)
class Survey:
    """What a folder would lose."""

    folder: str
    parts: list[str]
    """Parts that would."""
    rows: dict[str, int]
    """Rows of the current generation, by kind."""
    called: int
    """Faces of others that were recognised as the person."""
    generations: bool
    """Whether any generation holds something of it, also an old one that a run may have pinned."""
    unnamed: bool
    """Whether files do that no generation names: left by a run that was killed."""

    def __bool__(self) -> bool:
        return bool(self.parts or self.generations or self.unnamed)

    def __str__(self) -> str:
        said = [f"{count} {kind}" for kind, count in self.rows.items() if count]
        said += [f"{self.called} names of other faces"] if self.called else []
        said += [f"rows of {len(self.parts)} parts"] if self.parts else []
        return f"{self.folder}: {', '.join(said) or 'what old generations and killed runs left'}"


def is_published(manifest: str) -> bool:
    """Whether a manifest.json is one of a folder of ours."""
    try:
        return {"schema_version", "generation", "files"} <= storage.read_json(manifest).keys()
    except DatasetError:
        return False


def survey(folder: str, forgotten: Forgotten) -> Survey:
    """Look, and change nothing."""
    parts = [uri for uri in _parquet(storage.join(folder, "parts")) if loss(uri, forgotten)]
    rows, called = Counter[str](), 0
    for entry in publish.current(folder).get("files", []):
        lost = loss(storage.join(folder, entry["path"]), forgotten) if entry["kind"] != "index" else None
        if lost:
            rows[entry["kind"]] += int((~lost.keep).sum())
            called += lost.called
    live = _named(folder)
    holding = {uri for uri in _parquet(storage.join(folder, "generations")) if loss(uri, forgotten)}
    held = any(rows.values()) or called or _conflicting(publish.current(folder), forgotten)
    return Survey(folder, parts, rows, called, bool(held or holding & live), bool(holding - live))


def erase(fence: Fence, found: Survey, forgotten: Forgotten) -> None:
    """Do it, with the folder's lock held. Killed anywhere and begun again, it ends the same."""
    manifest = publish.current(fence.folder)
    if found.generations and manifest:
        _publish_without(fence, publish.Dataset(fence.folder, manifest), forgotten)
    for uri in found.parts:
        table, groups = without(uri, loss(uri, forgotten), forgotten)
        if table.num_rows:
            fence.write(uri, storage.parquet(table, groups))
        else:
            fence.remove(uri)
    purge(fence)


def purge(fence: Fence) -> None:
    """Remove what no generation names, and torn writes."""
    publish.sweep(fence)
    for uri in storage.list_tree(fence.folder):
        if uri.endswith(".tmp"):
            fence.remove(uri)


def successors(folder: str) -> dict[str, publish.Dataset]:
    """The digest of the generation that was erased last, and what took its place."""
    manifest = publish.current(folder)
    if not manifest.get("erased"):
        return {}
    return {manifest["erased"][-1]["digest"]: publish.Dataset(folder, manifest)}


def relink(fence: Fence, followed: dict[str, publish.Dataset]) -> None:
    """Say of vectors made from faces that were erased from that they belong to the faces as they are now."""
    said = publish.current(fence.folder)
    if faces := followed.get(said.get("faces_digest", "")):
        publish.amend(fence, {"faces_digest": faces.digest, "faces_generation": faces.generation})


def _publish_without(fence: Fence, dataset: publish.Dataset, forgotten: Forgotten) -> None:
    folder, generation = dataset.folder, publish.begin(fence)
    files, moved = {}, dict[str, Moved]()
    for entry in dataset.manifest["files"]:
        files[entry["path"]] = entry
        uri = storage.join(folder, entry["path"])
        lost = loss(uri, forgotten) if entry["kind"] != "index" else None
        if lost:
            files[entry["path"]] = _write(generation, folder, entry, lost, forgotten)
            if entry["kind"] == "faces":
                moved[_name(entry["path"])] = Moved(lost.keep, storage.row_group_ends(uri))
    for path in dataset.files("index") if moved else []:
        table = reindexed(storage.read_table(storage.join(folder, path)), moved)
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
    """Drop shards without rows, but for the first where all have none."""
    filled = {entry["kind"] for entry in files if entry["rows"]}
    kept: list[dict[str, Any]] = []
    for entry in files:
        again = entry["kind"] in filled | {other["kind"] for other in kept}
        if entry["rows"] or entry["kind"] not in SHARDED or not again:
            kept.append(entry)
    return kept


def _described(now: publish.Dataset, forgotten: Forgotten) -> dict[str, Any]:
    """Those of the manifest's statements that have changed."""
    said: dict[str, Any] = {}
    if "counts" in now.manifest:
        said["counts"] = now.manifest["counts"] | {
            name: count for name, count in _counts(now).items() if name in now.manifest["counts"]
        }
    if "label_conflicts" in now.manifest:
        said["label_conflicts"] = [
            conflict
            for conflict in now.manifest["label_conflicts"]
            if conflict not in _conflicting(now.manifest, forgotten)
        ]
    if "listing" in now.manifest:
        said["listing"] = photographs.digest(_listed(now))
    return said


def _conflicting(manifest: dict[str, Any], forgotten: Forgotten) -> list[dict[str, Any]]:
    return [
        conflict
        for conflict in manifest.get("label_conflicts", [])
        if conflict["source_hash"] in forgotten.hashes or forgotten.identity in conflict["identities"]
    ]


def _counts(now: publish.Dataset) -> dict[str, Any]:
    """All counts that a manifest of ours may hold, of its files as they are now."""
    rows = Counter[str]()
    for entry in now.manifest["files"]:
        rows[entry["kind"]] += entry["rows"]
    counts: dict[str, Any] = {"faces": sum(rows[kind] for kind in SHARDED)}
    if rows["names"]:
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
        "identities": pc.count_distinct(_people(now)).as_py(),
        "near_duplicate_groups": len(set(near[0]["group"].to_pylist())) if near else 0,
    }


def _people(now: publish.Dataset) -> pa.ChunkedArray:
    return pa.concat_tables(
        [now.read(kind, ["identity"]) for kind in ("faces", "embeddings") if now.files(kind)]
    )["identity"]


def _listed(now: publish.Dataset) -> pa.Table:
    """The photographs that are left, as a listing of their source holds them: each has faces or is a reject."""
    columns = schema.PHOTOGRAPHS.names
    held = [now.read(kind, columns) for kind in ("faces", "embeddings") if now.files(kind)]
    rows = pa.concat_tables([*held, _rejects(now, "image").select(columns)])
    return photographs.in_order(rows.group_by(columns).aggregate([]).cast(schema.PHOTOGRAPHS))


def _rejects(now: publish.Dataset, level: str) -> pa.Table:
    rejects = now.read("rejects") if now.files("rejects") else schema.REJECTS.empty_table()
    return rejects.filter(pc.equal(rejects["level"], level))


def _replaced(dataset: publish.Dataset) -> list[dict[str, Any]]:
    """All generations that go, the current one last, after those that went before."""
    earlier = [
        {"generation": manifest["generation"], "digest": publish.Dataset(dataset.folder, manifest).digest}
        for manifest in publish.manifests(dataset.folder)
        if manifest["generation"] < dataset.generation
    ]
    current = {"generation": dataset.generation, "digest": dataset.digest}
    return [*dataset.manifest.get("erased", []), *earlier, current]


def _named(folder: str) -> set[str]:
    """URIs of the files of all generations that can be read."""
    return {
        storage.join(folder, entry["path"])
        for manifest in publish.manifests(folder)
        for entry in manifest["files"]
    }


def _parquet(folder: str) -> list[str]:
    return [uri for uri in storage.list_tree(folder) if uri.endswith(".parquet")]
