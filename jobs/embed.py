"""Faces and a model to embeddings: one 128-D unit vector a face."""

from __future__ import annotations

from facerec.cli import main
from facerec.embedding.pipeline import EmbedConfig, embed_faces
from facerec.session import ray_session


def run(config: EmbedConfig) -> None:
    """Embed what is not embedded yet and publish."""
    with ray_session():
        dataset = embed_faces(config)
    print(f"embed: {dataset.manifest['counts']['faces']} vectors in {dataset.folder}")


if __name__ == "__main__":
    main("embed", EmbedConfig, run)
