"""Faces, or photographs, and a model to embeddings: one 128-D unit vector a face."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from facerec.alignment.aligner import Aligner
from facerec.alignment.config import EVERY_FACE, AlignConfig, DetectionConfig
from facerec.alignment.pipeline import listed
from facerec.cli import main
from facerec.embedding.config import EmbedConfig
from facerec.embedding.photographs import Photographs, embed_photographs, plan_photographs
from facerec.embedding.pipeline import embed_faces, plan_faces
from facerec.errors import ConfigError
from facerec.session import ray_session


@dataclass(frozen=True, kw_only=True)
class EmbedJobConfig(EmbedConfig):
    """Faces, or photographs, and a model to embeddings."""

    photos: str = ""
    """Photographs instead of faces: a folder, or a .csv/.parquet manifest with uri, identity; local or s3://."""
    take: Literal["all", "subject"] = "all"
    """Of photos. all: every face, without names. subject: the one face that a photograph is named after."""
    detection: DetectionConfig = EVERY_FACE
    """Of photos: detection and subject policy; surer of a face than jobs/align.py, as no name vouches for there being one."""
    part: int = 200
    """Of photos: how many are a part, the unit of work that a kill can lose."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.photos and self.faces != EmbedConfig.faces:
            raise ConfigError(
                f"both photographs ({self.photos}) and faces ({self.faces}); give --photos or --faces"
            )


def photographs(config: EmbedJobConfig) -> Photographs:
    """The photographs and the aligner's part of the work."""
    align = AlignConfig(
        source=config.photos,
        faces=config.take,
        detection=config.detection,
        part=config.part,
        gpu=config.gpu,
    )
    listing = listed(align, "--photos")
    return Photographs(
        listed=listing.photographs,
        ignored=listing.ignored,
        notes=listing.notes(),
        make_align=partial(Aligner, align),
        preprocessing=align.preprocessing.to_json(),
        deciding=align.deciding(),
        part=align.part,
    )


def run(config: EmbedJobConfig) -> None:
    """Embed what is not embedded yet and publish."""
    brought = photographs(config) if config.photos else None
    with ray_session():
        dataset = embed_photographs(brought, config) if brought else embed_faces(config)
    print(
        f"embed: {dataset.manifest['counts']['faces']} vectors in {dataset.folder}, generation {dataset.generation}"
    )


def plan(config: EmbedJobConfig) -> dict[str, object]:
    """What run would do."""
    return plan_photographs(photographs(config), config) if config.photos else plan_faces(config)


if __name__ == "__main__":
    main("embed", EmbedJobConfig, run, plan=plan)
