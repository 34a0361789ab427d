"""Photographs to faces: detect, straighten and publish aligned faces as Parquet shards.

``align.py inspect FACES`` shows what came of it, as text and as one page.
"""

from __future__ import annotations

import sys

from facerec.alignment.config import AlignConfig
from facerec.alignment.pipeline import align_source, plan
from facerec.cli import main
from facerec.reporting.inspection import InspectConfig, inspect
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


def run_inspect(config: InspectConfig) -> None:
    """Say and show what a folder of faces holds."""
    print(inspect(config))
    print(f"align inspect: {config.out}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["inspect"]:
        main("align inspect", InspectConfig, run_inspect, sys.argv[2:])
    else:
        main("align", AlignConfig, run, plan=plan)
