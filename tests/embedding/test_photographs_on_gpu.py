"""Photographs aligned and embedded on a GPU that several actors share give the faces and vectors of the CPU.

These tests need one GPU, and say so where there is none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from facerec.alignment.config import AlignConfig
from facerec.alignment.pipeline import align_source
from facerec.models.embedder import ModelConfig, build
from facerec.models.format import save_model
from facerec.publish import open_dataset
from facerec.schema import Preprocessing
from facerec.session import ray_session
from facerec.synthetic import SyntheticConfig, write_collection
from jobs.embed import EmbedJobConfig, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in drawn/ and a model in model/."""
    folder, config = tmp_path_factory.mktemp("on-gpu"), ModelConfig(side=64)
    write_collection(folder / "drawn", SyntheticConfig(identities=6, photographs=6))
    save_model(str(folder / "model"), build(config, seed=0), config, Preprocessing().to_json(), {})
    return folder


def boxes(rows: pa.Table) -> np.ndarray:
    return np.stack(rows.sort_by("source_uri")["box"].to_numpy(zero_copy_only=False))


def test_aligned_faces_are_those_of_the_cpu(folder: Path) -> None:
    found = []
    for gpu in (False, True):
        out = str(folder / f"faces-{gpu}")
        config = AlignConfig(source=str(folder / "drawn"), out=out, part=6, gpu=gpu, actors_per_gpu=2)
        with ray_session():
            found.append(align_source(config).read("faces"))
    here, there = found
    assert there["source_uri"].sort().equals(here["source_uri"].sort())
    np.testing.assert_allclose(boxes(there), boxes(here), atol=3)


def test_photographs_are_detected_and_embedded_on_a_gpu(folder: Path) -> None:
    common = EmbedJobConfig(
        photos=str(folder / "drawn"), model=str(folder / "model"), part=6, precision="fp32", actors_per_gpu=2
    )
    found = []
    for gpu in (False, True):
        config = replace(common, gpu=gpu, out=str(folder / f"vectors-{gpu}"))
        run(config)
        rows = open_dataset(config.out, "jobs/embed.py").read("embeddings").sort_by("source_uri")
        found.append(rows)
    here, there = found
    assert there["source_uri"].equals(here["source_uri"])
    one, other = (np.stack(rows["embedding"].to_numpy(zero_copy_only=False)) for rows in found)
    assert np.median((one * other).sum(axis=1)) > 0.999
