"""What lies below the roots, sorted by what facerec knows of it. Nothing is changed here.

A file is facerec's by its place in a folder that facerec claimed, or by what it holds. All others are foreign.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from facerec import documents, publish, records, s3, schema, storage, svm
from facerec.erasure.forgotten import DAMAGE, Forgotten, Table
from facerec.errors import ConfigError, DatasetError, StorageError
from facerec.photographs import resolved
from facerec.records import Shown

TORN = re.compile(r"\.[0-9a-f]{32}\.tmp$")
"""The temporary file of a local write whose process was killed (storage._staged)."""
JOURNAL = re.compile(r"/\.erasing-[0-9a-f]{12}\.json$")
TABLE = re.compile(rf"(parts/part-[0-9a-f]{{24}}|{publish.OF_A_GENERATION.pattern}.+)\.parquet")
"""Tables of a claimed folder by their path in it: those that have the names that facerec gives."""
OWN = re.compile(
    r"\.lock|claim\.json|metrics\.jsonl|results\.parquet|generations/.+/manifest\.json|checkpoints/[^/]+/state(-\w+\.pt|\.pt|\.json)"
    r"|tensorboard/[^/]*tfevents[^/]*|cells/[^/]+/(result\.json|attempts\.json|log\.txt)"
)
"""Files of a claimed folder by their path in it that show nobody, or that ``datasets`` looks after."""
NAMED = ("manifest.json", "claim.json", "run.json", "report.json")
"""Names under which facerec writes JSON that says whom something shows."""
OLDER: documents.Shape = {
    "generation": int,
    "files": [{"path": str, "kind": str, "rows": int, "sha256": str}],
    "history?": [{"path": str}],
    "label_conflicts?": [{"source_hash": str, "identities": [str]}],
    "erased?": [{"generation": int, "digest": str}],
}
"""What is read of a manifest that another version of facerec wrote."""
SHOWS: documents.Shape = {"shows?": {"identities?": [str], "face_ids?": [str], "source_uris?": [str]}}
"""What is read of the record in a report."""
WEIGHTS = (".safetensors", ".pt")


@dataclass(frozen=True)
class Folder:
    """A folder that a job writes into."""

    uri: str
    claim: dict[str, Any]
    manifest: dict[str, Any] | None
    """The current generation's; empty where there is none, None where it is damaged."""
    tables: list[Table]
    """Its Parquet files with KEYS: all parts, and all files of generations."""


@dataclass(frozen=True)
class Weights:
    """A model or an export."""

    uri: str
    model_id: str
    faces: str
    """The digest of the faces that it was trained on; empty where it does not say."""


@dataclass
class Inventory:
    """All files below the roots."""

    files: list[str]
    folders: list[Folder] = field(default_factory=list)
    writers: set[str] = field(default_factory=set)
    """Folders that a job has claimed, locked, published or begun to train in."""
    shown: dict[str, Shown] = field(default_factory=dict)
    """Pages and SVMs: whom each shows."""
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Reports and records of runs."""
    weights: list[Weights] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    journals: dict[str, Forgotten] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    """Files of facerec that cannot be read, and why."""

    @property
    def tables(self) -> list[Table]:
        """Of all folders."""
        return [table for folder in self.folders for table in folder.tables]

    @property
    def roots(self) -> list[str]:
        """The roots of all known sources, resolved."""
        return sorted({root for folder in self.folders if (root := _source(folder.claim))})

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """Records of runs, by their folder."""
        return {_folder(uri): said for uri, said in self.documents.items() if uri.endswith("/run.json")}

    def checkpoints(self, run: str) -> list[str]:
        """Folders of weights below a run, without the untrained control."""
        below = {_folder(uri) for uri in self.files if uri.endswith(WEIGHTS) and uri.startswith(f"{run}/")}
        return sorted(below - {f"{run}/untrained"})


@dataclass(frozen=True)
class Claims:
    """Which files there are, and which folders jobs write into."""

    files: list[str]
    parsed: dict[str, Any]
    """What the JSON files hold; None for a file that is no JSON."""
    manifests: dict[str, dict[str, Any]]
    """The current manifests, by folder."""
    folders: set[str]
    """Folders that a job has claimed, locked or published."""
    damaged: dict[str, str]

    @property
    def writers(self) -> set[str]:
        """Folders to be locked: runs, too."""
        runs = {_folder(uri) for uri, said in self.parsed.items() if _is_run(uri, said)}
        return self.folders | runs


def claims(roots: list[str]) -> Claims:
    """List the files below the roots and read the JSON among them."""
    files = sorted({uri for root in roots for uri in storage.list_tree(root)})
    damaged: dict[str, str] = {}
    parsed = {uri: _json(uri, damaged) for uri in files if uri.endswith(".json")}
    manifests = {}
    for uri, said in parsed.items():
        if uri.endswith("/manifest.json") and _is_manifest(said):
            manifests[_folder(uri)] = said
            if lacking := fault(said):
                damaged[uri] = lacking
    folders = {_folder(uri) for uri in files if uri.endswith(("/claim.json", "/.lock"))} | manifests.keys()
    folders |= {_folder(uri) for uri in damaged if uri.endswith("/manifest.json")}
    folders |= {
        uri.rsplit("/parts/", 1)[0] for uri in files if re.search(r"/parts/part-[0-9a-f]{24}\.parquet$", uri)
    }
    folders = {
        folder
        for folder in folders
        if not (_folder(folder).endswith("/generations") and owner(_folder(folder), folders))
    }
    sound = {folder: said for folder, said in manifests.items() if f"{folder}/manifest.json" not in damaged}
    return Claims(files, parsed, sound, folders, damaged)


def look(roots: list[str]) -> Inventory:
    """Everything below the roots, each file once."""
    there = claims(roots)
    found = Inventory([uri for uri in there.files if not uri.endswith("/.lock")], damaged=there.damaged)
    manifests = {folder: said for folder, said in there.manifests.items() if folder in there.folders}
    listed = {f"{folder}/{entry['path']}" for folder, said in manifests.items() for entry in said["files"]}
    tables: dict[str, list[str]] = {folder: [] for folder in there.folders}
    for uri in there.files:
        above = owner(uri, there.folders)
        path = uri[len(above) + 1 :] if above else ""
        if TORN.search(uri):
            found.torn.append(uri)
        elif uri in listed or TABLE.fullmatch(path):
            tables[above].append(uri)
        elif not OWN.fullmatch(path) and uri not in found.damaged:
            _sort(uri, there.parsed.get(uri), found)
    _add_folders(found, there, tables)
    found.writers = there.writers
    return found


def _sort(uri: str, said: Any, found: Inventory) -> None:
    """Put a file that is in no claimed folder's own places where it belongs by what it holds."""
    try:
        if JOURNAL.search(uri) and isinstance(said, dict):
            found.journals[uri] = Forgotten.from_json(said, uri)
        elif uri.endswith(".json"):
            _sort_json(uri, said, found)
        elif uri.endswith(".html"):
            shown = records.read_page(storage.read_bytes(uri).decode("utf-8", "replace"))
            found.foreign += [uri] if shown is None else []
            found.shown |= {} if shown is None else {uri: shown}
        elif uri.endswith(".skops"):
            found.shown[uri] = Shown(_known_to_svm(uri))
        elif uri.endswith(".onnx"):
            about = records.onnx_metadata(storage.read_bytes(uri))
            if "model_id" in about:
                found.weights.append(Weights(uri, about["model_id"], about.get("faces", "")))
        elif not uri.endswith(WEIGHTS):
            found.foreign.append(uri)
    except FileNotFoundError:
        pass
    except DAMAGE as error:
        found.damaged[uri] = " ".join(str(error).split())[:300]


def _sort_json(uri: str, said: Any, found: Inventory) -> None:
    said = said if isinstance(said, dict) else {}
    is_report = {"format", "versions", "verification"} <= said.keys()
    if is_report and said["format"] not in records.REPORT_FORMATS:
        raise DatasetError(
            f"it has format {said['format']!r}, and this code knows the fields of {records.REPORT_FORMATS}"
        )
    if is_report or _is_run(uri, said):
        if wrong := documents.fault(said, SHOWS):
            raise DatasetError(wrong)
        found.documents[uri] = said
    elif {"model", "model_id", "weights_sha256"} <= said.keys():
        about = said.get("about")
        faces = about.get("faces", "") if isinstance(about, dict) else ""
        found.weights.append(Weights(_folder(uri), str(said["model_id"]), str(faces)))
    elif not _is_manifest(said):
        found.foreign.append(uri)


def _add_folders(found: Inventory, there: Claims, tables: dict[str, list[str]]) -> None:
    """Folders with their claims, and the root of each one's source: its own, or that of the faces that it was made of."""
    said = {folder: there.parsed.get(f"{folder}/claim.json") for folder in there.folders}
    claim = {folder: each if isinstance(each, dict) else {} for folder, each in said.items()}
    digests = {digest for each in there.manifests.values() for digest in digests_of(each)}
    for folder in sorted(there.folders):
        damaged = f"{folder}/manifest.json" in there.damaged
        manifest = None if damaged else there.manifests.get(folder, {})
        root = _source(claim[folder]) or _source(claim.get(str(claim[folder].get("faces", "")), {}))
        made_of = (manifest or {}).get("embeddings_digest")
        orphan = bool(made_of) and made_of not in digests
        rows = [Table(uri, root, orphan) for uri in tables[folder]]
        found.folders.append(Folder(folder, claim[folder], manifest, rows))


def digests_of(manifest: dict[str, Any]) -> set[str]:
    """Of a generation, and of those that were erased before it."""
    return {publish.Dataset("", manifest).digest, *(entry["digest"] for entry in manifest.get("erased", []))}


def _json(uri: str, damaged: dict[str, str]) -> Any:
    """What a JSON file holds; None where it is no JSON, which is a fault under a name of ours."""
    try:
        return json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        if uri.rsplit("/", 1)[-1] in NAMED:
            damaged[uri] = f"it is not valid JSON ({error})"
    except OSError as error:
        damaged[uri] = str(error)
    return None


def _is_manifest(said: Any) -> bool:
    return isinstance(said, dict) and {"schema_version", "generation", "files"} <= said.keys()


def fault(said: Any) -> str:
    """What is wrong with a manifest, also with one of another version of facerec; empty if nothing is."""
    if not _is_manifest(said):
        return "it is not a manifest"
    return publish.fault(said) if said["schema_version"] == schema.VERSION else publish.fault(said, OLDER)


def _is_run(uri: str, said: Any) -> bool:
    return uri.endswith("/run.json") and isinstance(said, dict) and isinstance(said.get("split"), dict)


def owner(uri: str, claimed: set[str]) -> str:
    """The nearest claimed folder above a file; empty where there is none."""
    folder = _folder(uri)
    while folder and folder not in claimed:
        folder = _folder(folder)
    return folder


def _folder(uri: str) -> str:
    return uri.rpartition("/")[0]


def _source(claim: dict[str, Any]) -> str:
    """The root of a source, resolved: a folder, or the folder of a manifest."""
    source = claim.get("source")
    if not isinstance(source, str) or not source:
        return ""
    try:
        root = resolved(storage.absolute(source))
    except ConfigError:
        return ""  # an address of another kind: a claim.json that facerec did not write
    return _folder(root) if root.lower().endswith((".csv", ".parquet")) else root


def _known_to_svm(uri: str) -> frozenset[str]:
    try:
        return frozenset(map(str, svm.load_svm(storage.read_bytes(uri)).classes_.tolist()))
    except AttributeError:
        raise DatasetError("it is not an SVM that evaluation saved") from None


def uploads(roots: list[str], problems: dict[str, str]) -> list[tuple[str, str]]:
    """Unfinished multipart uploads below the roots in S3: the address and the upload's id of each."""
    found: list[tuple[str, str]] = []
    for root in filter(storage.is_s3, roots):
        try:
            found += s3.unfinished_uploads(root)
        except StorageError as error:
            problems[root] = f"its unfinished uploads cannot be listed: {error}"
    return found
