"""A small run's artifacts for erasure, written without Ray or a detector: each person has a direction and a colour.

Folders are written through ``publish``, names by ``jobs/identify.py``'s code, numbers and the SVM by evaluation's, pages by
reporting's.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from facerec import publish, records, schema, storage
from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.identification import enrol, identify
from facerec.evaluation.pairs import all_pairs, hardest
from facerec.evaluation.verification import verify
from facerec.naming import pipeline as naming
from facerec.photographs import as_table, digest, in_order
from facerec.reporting.inspection import InspectConfig, inspect
from facerec.reporting.page import ReportConfig, write_report
from facerec.schema import Preprocessing
from facerec.svm import save_svm

LONG = "Wolfeschlegelsteinhausenbergerdorff " * 3 + "the twelfth"
NAMES = (
    *("1", "people", "7", "null", unicodedata.normalize("NFD", "José"), "anna", LONG),
    *("Fox \U0001f98a", "back\\slash\ttab", "Ann", "Ann Lee", "train"),
)
"""Names that are also keys, numbers, YAML values, folders, or spelled in several ways."""
EACH, SHARD = 8, 24
MODEL_ID = "0123456789abcdef"


@dataclass(frozen=True)
class Photograph:
    """One photograph with one face, or with none if it is a reject."""

    uri: str
    identity: str | None
    content: str
    """Equal for equal bytes."""
    reason: str | None = None

    @property
    def source_hash(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()

    @property
    def face_id(self) -> str:
        return hashlib.md5(f"{self.source_hash}{self.identity}".encode()).hexdigest()


def photographs_of(names: tuple[str, ...], source: str, each: int = EACH) -> list[Photograph]:
    """``each`` photographs of everybody, 0.jpg and so on in a folder of their name; the last of each has no face."""
    return [
        Photograph(f"{source}/{name}/{at}.jpg", name, f"{name} {at}", "no_face" if at == each - 1 else None)
        for name in names
        for at in range(each)
    ]


def write_album(folder: Path | str, photographs: list[Photograph], source: str) -> publish.Dataset:
    """faces/ as alignment leaves it: claim, parts and a generation in shards of SHARD faces."""
    with publish.exclusive(str(folder), "--out") as fence:
        publish.claim(fence, {"source": source, "detector": "mtcnn"}, "--out")
        for at in range(0, len(photographs), SHARD):
            rows = pa.Table.from_pylist(
                [_aligned(each) for each in photographs[at : at + SHARD]], schema.ALIGNED
            )
            publish.write_part(fence, rows.select(schema.PHOTOGRAPHS.names), lambda rows=rows: rows)
        made = publish.begin(fence)
        faces = [_aligned(each) for each in photographs if not each.reason]
        files, spans = [], list[dict[str, Any]]()
        for number in range(-(-len(faces) // SHARD)):
            shard, name = faces[number * SHARD : (number + 1) * SHARD], f"faces-{number:05d}.parquet"
            files.append(made.write(name, "faces", pa.Table.from_pylist(shard, schema.FACES)))
            spans += [
                {"identity": row["identity"], "file": name, "row_group": 0, "first_row": at, "rows": 1}
                for at, row in enumerate(shard)
            ]
        rejects = [{**_aligned(each), "level": "image"} for each in photographs if each.reason]
        alike = [{"face_id": row["face_id"], "group": at // 2} for at, row in enumerate(faces[: 2 * SHARD])]
        tables = {
            "rejects": pa.Table.from_pylist(rejects, schema.REJECTS),
            "index": pa.Table.from_pylist(spans, schema.INDEX),
            "near_duplicates": pa.Table.from_pylist(alike, schema.NEAR_DUPLICATES),
        }
        files += [made.write(f"{kind}.parquet", kind, table) for kind, table in tables.items()]
        listed = in_order(
            as_table([each.uri for each in photographs], [each.identity for each in photographs])
        )
        return made.publish(files, {
            "preprocessing": Preprocessing().to_json(),
            "config": {"source": source},
            "listing": digest(listed),
            "counts": _counts(photographs),
            "label_conflicts": _conflicts(photographs),
        })  # fmt: skip


def write_vectors(folder: Path, faces: publish.Dataset, shard: int = SHARD) -> publish.Dataset:
    """embeddings/ as jobs/embed.py leaves it for published faces: a part and a file for each shard."""
    rows = faces.read("faces")
    person = np.unique(rows["identity"].fill_null("").to_pylist(), return_inverse=True)[1]
    noise = np.random.default_rng(0).normal(size=(rows.num_rows, schema.EMBEDDING_DIM))
    vectors = np.eye(schema.EMBEDDING_DIM)[person] + 0.05 * noise
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    kept = {name: rows[name] for name in schema.EMBEDDINGS.names if name in rows.column_names}
    same = {"model_id": MODEL_ID, "preprocessing_id": "p", "faces_generation": faces.generation}
    added = {name: [value] * rows.num_rows for name, value in same.items()}
    table = pa.table({**kept, "embedding": list(unit), **added}).select(schema.EMBEDDINGS.names)
    table = table.cast(schema.EMBEDDINGS)
    about = {"faces_digest": faces.digest, "faces_generation": faces.generation, "model_id": MODEL_ID}
    with publish.exclusive(str(folder), "--out") as fence:
        publish.claim(fence, {"faces": faces.folder}, "--out")
        made, files = publish.begin(fence), []
        for number in range(-(-table.num_rows // shard)):
            some = table.slice(number * shard, shard)
            storage.write_table(f"{folder}/parts/part-{number:024x}.parquet", some)
            files.append(made.write(f"embeddings-{number:05d}.parquet", "embeddings", some))
        return made.publish(files, about | {"counts": {"faces": table.num_rows}})


def write_run(root: Path, faces: publish.Dataset, names: list[str]) -> None:
    """run/: the split, a model that was trained on the first half of the people, and the untrained one."""
    split = {"train": names[: len(names) // 2], "validation": [], "unseen": names[len(names) // 2 :]}
    storage.write_json(f"{root}/run/run.json", {
        "code_version": "0.1.0",
        "config": {"faces": faces.folder, "precision": "fp32"},
        "precision": "fp32",
        "preprocessing": Preprocessing().to_json(),
        "split": split,
        "faces": {"folder": faces.folder, "generation": faces.generation, "digest": faces.digest},
    })  # fmt: skip
    for network, model_id in (("model", MODEL_ID), ("untrained", "f" * 16)):
        card = {"model": {}, "model_id": model_id, "weights_sha256": "0", "about": {"faces": faces.digest}}
        storage.write_json(f"{root}/run/{network}/config.json", {"format": 1, **card})
        storage.write_bytes(f"{root}/run/{network}/model.safetensors", b"weights")
    lines = [{"step": at, "loss": 0.2, "d_ap": [0, 1, 2], "d_an": [1, 2, 3]} for at in range(3)]
    lines = [line | {"active_fraction": 1, "workers": 2, "elapsed_s": 5.0} for line in lines]
    storage.write_bytes(
        f"{root}/run/metrics.jsonl", "\n".join(str(line) for line in lines).replace("'", '"').encode()
    )
    storage.write_bytes(f"{root}/model.onnx", onnx({"model_id": MODEL_ID, "faces": faces.digest}))


def write_numbers(root: Path, vectors: publish.Dataset, counts: dict[str, Any]) -> None:
    """report.json and svm.skops about everybody, as evaluation writes them."""
    table = vectors.read("embeddings")
    names = np.array(table["identity"].to_pylist(), str)
    rows = schema.vectors(table)
    enrolled = enrol(names, np.arange(len(names)), EvaluateConfig(strangers=3), set())
    said, model = identify(rows, enrolled, 0)
    pairs = all_pairs(rows, names, 0)
    shown = {"hardest": hardest(pairs, table["face_id"].to_pylist(), names.tolist()), "seconds": 1.0}
    leak = [{"scored": name, "seen": name.upper()} for name in sorted(set(names.tolist()))]
    seen = ("faces_seen", "near_duplicate_bits", "people", "people_by_name", "people_by_photograph")
    counted = dict.fromkeys([*seen, "people_seen", "photographs", "photographs_by_chance"], 0)
    leakage = {"checked": True, "action": "report", "by_name": leak, "by_photograph": [], **counted}
    data = save_svm(model)
    report = {
        "format": 5,
        "svm": {"sha256": hashlib.sha256(data).hexdigest(), "model_id": MODEL_ID},
        "config": {"embeddings": vectors.folder, "run": f"{root}/run"},
        "run": storage.read_json(f"{root}/run/run.json"),
        "embeddings": {"trained": MODEL_ID, "untrained": "f" * 16},
        "alignment": counts,
        "label_conflicts": 0,
        "versions": {"facerec": "1", "people": "1"},
        "headline": {"trained": said["accuracy"]},
        "identification": {"trained": said | {"seconds": 1.5}},
        "verification": {"trained": verify(pairs, 20, 0) | shown},
        "clustering": {"trained": {"refused": "no", "seconds": 0.0}},
        "unseen_people": sorted(set(names.tolist())),
        "left_out_people": [],
        "leakage": leakage,
        "chosen_on": {"svm": "halves"},
    }
    storage.write_json(f"{root}/report.json", report | {"shows": records.in_report(report).to_json()})
    storage.write_bytes(f"{root}/svm.skops", data)


def write_pages(root: Path) -> None:
    """report.html with the map, the hardest pairs and contacts, and inspect.html."""
    write_report(report_of(root))
    inspect(InspectConfig(faces=f"{root}/faces", out=f"{root}/inspect.html", samples=50))


def report_of(root: Path) -> ReportConfig:
    """The settings by which jobs/report.py shows this run."""
    folders = {name: f"{root}/{name}" for name in ("faces", "run", "embeddings")}
    return ReportConfig(**folders, report=f"{root}/report.json", out=f"{root}/report.html")


def write_all(root: Path, names: tuple[str, ...] = NAMES) -> list[Photograph]:
    """Everything that a run leaves below ``root``, of photographs that are said to lie in ``root``/../photos."""
    source = f"{root.parent}/photos"
    photographs = photographs_of(names, source)
    faces = write_album(root / "faces", photographs, source)
    vectors = write_vectors(root / "embeddings", faces)
    settings = {name: str(root / "embeddings") for name in ("embeddings", "gallery")}
    naming.identify(naming.IdentifyConfig(**settings, out=f"{root}/names", false_alarms=0.2))  # type: ignore[arg-type]
    write_run(root, faces, list(names))
    write_numbers(root, vectors, faces.manifest["counts"])
    write_pages(root)
    (root / "notes.txt").write_text("0.jpg, 1.jpg and 7.jpg are the best of each folder\n")
    return photographs


def onnx(about: dict[str, str]) -> bytes:
    """The metadata of an ONNX file, without a graph (field 14 of ModelProto)."""

    def field(number: int, data: bytes) -> bytes:
        assert len(data) < 128
        return bytes([number << 3 | 2, len(data)]) + data

    entries = (field(1, key.encode()) + field(2, value.encode()) for key, value in about.items())
    return b"\x08\x08" + b"".join(field(14, entry) for entry in entries)


def _aligned(photograph: Photograph) -> dict[str, Any]:
    row = {
        "source_uri": photograph.uri,
        "identity": photograph.identity,
        "source_version": photograph.source_hash[:16],
        "source_hash": photograph.source_hash,
    }
    if photograph.reason:
        return row | {"level": "image", "reason": photograph.reason, "detail": "250 x 250 pixels"}
    return row | {
        "face_id": photograph.face_id,
        "image": {"bytes": _jpeg(photograph.source_hash), "path": None},
        "box": [0.0, 0.0, 9.0, 9.0],
        "landmarks": [4.0] * 10,
        "confidence": 0.99,
        "blur": 100.0,
        "phash": int(photograph.source_hash[:15], 16),
    }


def _jpeg(source_hash: str) -> bytes:
    noise = np.random.default_rng(int(source_hash[:8], 16)).integers(0, 256, (6, 6, 3), np.uint8)
    large = cv2.resize(noise, (32, 32), interpolation=cv2.INTER_LINEAR)
    return cv2.imencode(".jpg", large)[1].tobytes()


def _counts(photographs: list[Photograph]) -> dict[str, Any]:
    lost = sum(each.reason is not None for each in photographs)
    return {
        "photographs": len(photographs),
        "ignored_files": 0,
        "photographs_with_faces": len(photographs) - lost,
        "faces": len(photographs) - lost,
        "identities": len({each.identity for each in photographs}),
        "image_rejects": {"no_face": lost} if lost else {},
        "face_rejects": {},
        "near_duplicate_groups": SHARD,
    }


def _conflicts(photographs: list[Photograph]) -> list[dict[str, Any]]:
    under: dict[str, set[str]] = {}
    for each in photographs:
        under.setdefault(each.source_hash, set()).add(each.identity or "")
    return [
        {"source_hash": found, "identities": sorted(names)}
        for found, names in sorted(under.items())
        if len(names) > 1
    ]
