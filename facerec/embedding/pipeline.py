"""The embedding stage: faces in, unit vectors out, as one Ray Data stage over parts.

A part is one shard of faces and one atomic file of vectors; a run killed anywhere skips the parts that exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray.data
import torch

from facerec import publish, schema, storage
from facerec.errors import ConfigError
from facerec.models.format import load_model, read_card
from facerec.models.images import decode_jpeg, to_input
from facerec.session import cores

COLUMNS = ["face_id", "identity", "image", "source_uri", "phash", "box", "confidence"]


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Faces and a model to embeddings."""

    faces: str = "faces"
    """Folder of aligned faces, as jobs/align.py leaves it."""
    model: str = "run/model"
    """Folder of the model: run/model, or run/untrained for the control."""
    out: str = "embeddings"
    """Where the vectors go; the same command again goes on."""
    batch_size: int = 64
    """Faces a forward pass."""
    actors: int = 0
    """Embedding actors, one core or GPU each; 0 takes all the cluster's cores."""
    gpu: bool = False
    """One GPU an actor instead of one core."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.actors < 0:
            raise ConfigError(
                f"batch_size is {self.batch_size} and actors {self.actors}; need --batch_size >= 1 and --actors >= 0"
            )


def embed(
    faces: ray.data.Dataset, config: EmbedConfig, about: dict[str, Any], actors: int
) -> ray.data.Dataset:
    """schema.FACES rows (COLUMNS of them) to schema.EMBEDDINGS rows, every row, in order.

    ``about`` is stamped on each row: model_id, preprocessing_id, faces_generation.
    """
    return faces.map_batches(
        FaceEmbedder,
        fn_constructor_args=(storage.absolute(config.model), config.batch_size, config.gpu, about),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=1,
        num_gpus=1 if config.gpu else None,
    )


def embed_faces(config: EmbedConfig) -> publish.Dataset:
    """Embed the shards that are not embedded yet and publish. Raises before any work where things do not fit."""
    faces = publish.open_dataset(config.faces, "jobs/align.py")
    card = read_card(storage.absolute(config.model))
    schema.require_same_preprocessing(
        card.preprocessing, faces.preprocessing, f"the model {config.model}", f"the faces {config.faces}"
    )
    out = storage.absolute(config.out)
    about = {
        "model_id": card.model_id,
        "preprocessing_id": schema.Preprocessing(**card.preprocessing).id,
        "faces_generation": faces.generation,
    }
    with publish.exclusive(out, "--out"):
        publish.claim(out, {**about, "faces_digest": faces.digest}, "--out")
        if storage.exists(storage.join(out, "manifest.json")):
            print(f"embed: {config.out}: finished already", flush=True)
            return publish.open_dataset(out, "jobs/embed.py")
        _embed_shards(faces, out, config, about)
        return _publish(faces, out, about)


def _embed_shards(faces: publish.Dataset, out: str, config: EmbedConfig, about: dict[str, Any]) -> None:
    missing = [uri for uri in faces.uris("faces") if not storage.exists(_part(out, uri))]
    if not missing:
        return
    ray.data.DataContext.get_current().target_max_block_size = None  # a block is a part, and is never cut
    blocks = [pa.table({"shard": [uri]}) for uri in missing]
    shards = ray.data.from_arrow(blocks).map_batches(_read_shard, batch_size=None, batch_format="pyarrow")
    vectors = embed(shards, config, about, min(config.actors or cores(), len(missing)))
    for done, row in enumerate(
        vectors.map_batches(
            _write_part,  # type: ignore[arg-type]  # Ray's stub has no fn_args in it
            fn_args=(out,),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0.01,
        ).iter_rows(),
        start=1,
    ):
        print(f"embed: {done}/{len(missing)} shards, {row['faces']} faces in the last", flush=True)


def _part(out: str, shard: str) -> str:
    return storage.join(out, "parts", shard.rsplit("/", 1)[1])


def _read_shard(listed: pa.Table) -> pa.Table:
    shard = listed["shard"][0].as_py()
    rows = storage.read_table(shard, COLUMNS)
    return rows.append_column("shard", pa.array([shard] * rows.num_rows))


def _write_part(rows: pa.Table, out: str) -> pa.Table:
    storage.write_table(
        _part(out, rows["shard"][0].as_py()), rows.drop_columns(["shard"]).cast(schema.EMBEDDINGS)
    )
    return pa.table({"faces": [rows.num_rows]})


def _publish(faces: publish.Dataset, out: str, about: dict[str, Any]) -> publish.Dataset:
    files = []
    for number, shard in enumerate(faces.uris("faces")):
        table, path = (
            storage.read_table(_part(out, shard)),
            f"generations/0001/embeddings-{number:05d}.parquet",
        )
        storage.write_table(storage.join(out, path), table)
        files.append(publish.describe(out, path, "embeddings", table.num_rows))
    count = sum(file["rows"] for file in files)
    described = {
        **about,
        "faces_digest": faces.digest,
        "preprocessing": faces.preprocessing,
        "counts": {"faces": count},
    }
    return publish.publish(out, 1, files, described)


class FaceEmbedder:
    """The actor: a network that lives as long as the pool. One thread an actor."""

    def __init__(self, model: str, batch_size: int, gpu: bool, about: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self._device = torch.device("cuda" if gpu else "cpu")
        network, card = load_model(model)
        self._network, self._side = network.to(self._device), card.config.side
        self._batch_size, self._about = batch_size, about

    def __call__(self, faces: pa.Table) -> pa.Table:
        """One vector a row, in order; other columns pass through."""
        encoded = faces["image"].to_pylist()
        vectors = [
            self._embed([image["bytes"] for image in encoded[at : at + self._batch_size]])
            for at in range(0, len(encoded), self._batch_size)
        ]
        flat = pa.array(np.concatenate(vectors).ravel(), pa.float32())
        rows = faces.drop_columns(["image"])
        rows = rows.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, schema.EMBEDDING_DIM))
        for name, value in self._about.items():
            rows = rows.append_column(
                name, pa.array([value] * rows.num_rows, schema.EMBEDDINGS.field(name).type)
            )
        return rows.select(
            [*schema.EMBEDDINGS.names, *(name for name in rows.column_names if name == "shard")]
        )

    @torch.inference_mode()
    def _embed(self, encoded: list[bytes]) -> np.ndarray[Any, np.dtype[np.float32]]:
        images = np.stack([decode_jpeg(data) for data in encoded])
        vectors: np.ndarray[Any, np.dtype[np.float32]] = (
            self._network(to_input(images, self._side).to(self._device)).float().cpu().numpy()
        )
        return vectors
