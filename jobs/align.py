"""Photographs to faces: detect, straighten and publish aligned faces as Parquet shards."""

from __future__ import annotations

from facerec.alignment.pipeline import AlignConfig, align_source
from facerec.cli import main
from facerec.session import ray_session


def run(config: AlignConfig) -> None:
    """Align what is not aligned yet and say what there is now."""
    with ray_session():
        dataset = align_source(config)
    counts = dataset.manifest["counts"]
    print(
        f"align: {counts['photographs']} photographs = {counts['photographs_with_faces']} with faces + rejects {counts['image_rejects']}"
    )
    print(
        f"align: {counts['faces']} faces of {counts['identities']} identities in {dataset.folder}, generation {dataset.generation}"
    )
    if conflicts := dataset.manifest["label_conflicts"]:
        print(
            f"align: WARNING: {len(conflicts)} photographs stand under two names: {conflicts[0]['identities']}, ...; see manifest.json"
        )


if __name__ == "__main__":
    main("align", AlignConfig, run)
