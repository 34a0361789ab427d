"""A GPU gives what the CPU gives: the same step, the same triplets, whole runs, Ray's workers, and vectors.

These tests need one GPU, and say so where there is none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from facerec import lock
from facerec.embedding.config import EmbedConfig
from facerec.embedding.pipeline import embed_faces
from facerec.models.format import load_model
from facerec.models.images import decode_jpeg, to_input
from facerec.publish import Dataset
from facerec.session import ray_session
from facerec.telemetry import read_json_lines
from facerec.training.augment import AugmentConfig
from facerec.training.augment_batch import augment_batch, augmented
from facerec.training.batches import BatchConfig
from facerec.training.config import TrainConfig
from facerec.training.distances import Anchors
from facerec.training.fit import train
from facerec.training.losses import triplet_sum
from facerec.training.mining import Miner, MiningConfig
from facerec.training.plan import claim, make_plan
from facerec.training.step import MicroBatches, descend
from tests.support.faces import write_faces
from tests.training.test_augment_batch import OFTEN, draws
from tests.training.test_gradient import MARGIN, MICRO, SOFT, batch_of, small_network
from tests.training.test_loop import config_of, work_until
from tests.training.test_mining import DENSE, MINERS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def step_on(device: str, miner: Miner, cache: bool) -> tuple[float, Tensor]:
    """Loss and gradient of a step in float64, without dropout: each device draws its own."""
    images, labels, faces = batch_of(6, alone=False)
    network = small_network(norm=True)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    result = descend(
        MicroBatches(network.to(device), 6),
        images.to(device),
        labels.numpy(),
        faces.numpy(),
        seeds=range(6),
        sizes=[6 * MICRO],
        miner=miner,
        mining=MiningConfig(margin=MARGIN, soft=SOFT if miner == "n_pair" else 0.0),
        cache=cache,
    )
    gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    return float(result.loss), torch.cat(gradients).cpu()


def steps_of(cache: bool, **how: Any) -> list[tuple[float, Tensor, Tensor]]:
    """Loss, gradient and buffers of five steps in fp32 with BatchNorm and dropout, by weights that stay as they are."""
    images, labels, faces = batch_of(7, alone=False)
    network = small_network(norm=True).float().to("cuda")
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model, found = MicroBatches(network, 7, **how), []
    for number in range(5):
        for parameter in network.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()
        result = descend(
            model,
            images.float().to("cuda") + number,
            labels.numpy(),
            faces.numpy(),
            seeds=range(number, number + 7),
            sizes=[7 * MICRO],
            miner="batch_all",
            mining=MiningConfig(margin=MARGIN),
            cache=cache,
        )
        gradients = [
            parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None
        ]
        buffers = [buffer.flatten().float() for buffer in network.buffers()]
        found.append((float(result.loss), torch.cat(gradients).cpu(), torch.cat(buffers).cpu()))
    return found


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_compiled_steps_in_shared_forwards_are_the_eager_ones(cuda_graphs: bool, cache: bool) -> None:
    """While CUDA graphs warm up, are recorded, and replayed: nothing of a step is overwritten by the next."""
    ours = steps_of(cache, shared=3, backend="inductor", cuda_graphs=cuda_graphs)
    for (loss, slope, kept), (expected, gradient, buffers) in zip(ours, steps_of(cache), strict=True):
        assert loss == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(slope, gradient, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(kept, buffers, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("miner", [*MINERS, *DENSE])
def test_a_step_has_the_loss_and_the_gradient_that_it_has_on_the_cpu(miner: Miner, cache: bool) -> None:
    (loss, gradient), (expected, slope) = step_on("cuda", miner, cache), step_on("cpu", miner, cache)
    assert loss == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(gradient, slope, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("per_person", [4, 16])
@pytest.mark.parametrize("miner", MINERS)
def test_the_triplets_are_as_far_as_on_the_cpu(miner: Miner, per_person: int) -> None:
    whole = torch.randint(-8, 9, (512, 16), generator=torch.manual_seed(0)) / 8  # distances without rounding
    labels, faces = np.arange(512) // per_person, np.arange(512)
    config = MiningConfig(margin=2.0)
    sums = []
    for device in ("cpu", "cuda"):
        anchors = Anchors(whole.to(device), whole.to(device), labels, faces)
        sums.append(triplet_sum(miner, anchors, config))
    ours, theirs = sums
    assert (int(ours.active), int(ours.looked_at)) == (int(theirs.active), int(theirs.looked_at))
    for name in ("d_ap", "d_an"):
        torch.testing.assert_close(
            getattr(theirs, name).cpu().sort().values, getattr(ours, name).sort().values, rtol=0, atol=0
        )


def config_on_gpu(faces: Dataset, run: Path, workers: int) -> TrainConfig:
    batch = BatchConfig(p=8, k=4, micro_batch=8, cache=True)
    return config_of(faces, run, batch=batch, num_workers=workers, gpu=True)


def test_a_run_goes_on_from_its_checkpoint_and_its_worker_is_given_the_gpu(
    faces: Dataset, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config_on_gpu(faces, whole, workers=0))
    plan = make_plan(config_on_gpu(faces, killed, workers=0))
    with lock.exclusive(plan.uri(), "--run") as fence:
        work_until(claim(plan, fence), 5)
    with ray_session():
        train(config_on_gpu(faces, killed, workers=1))
    there, here = (read_json_lines(str(run / "metrics.jsonl")) for run in (whole, killed))
    assert [line["batches"] for line in here] == [line["batches"] for line in there]
    assert all(0 < line["memory_mb"] < 4000 for line in here)
    # In bf16, and with sums in no fixed order.
    assert here[-1]["loss"] == pytest.approx(there[-1]["loss"], rel=0.05)


def test_a_worker_of_ray_trains_compiled_and_with_cuda_graphs(faces: Dataset, tmp_path: Path) -> None:
    """In a process group of NCCL, which has nothing for the CPU."""
    config = replace(config_on_gpu(faces, tmp_path / "run", workers=1), compile=True, cuda_graphs=True)
    with ray_session():
        train(config)
    assert read_json_lines(f"{config.run}/metrics.jsonl")[-1]["step"] == config.steps


def test_vectors_are_those_of_the_cpu(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 12, 5)
    train(config_on_gpu(faces, tmp_path / "run", workers=0))
    model = str(tmp_path / "run" / "model")
    network, _ = load_model(model)
    rows = faces.read("faces")["image"].to_pylist()
    with torch.inference_mode():
        expected = network(to_input(np.stack([decode_jpeg(row["bytes"]) for row in rows]), 32)).numpy()
    for precision, off in (("fp32", 1e-3), ("bf16", 3e-2)):
        out = str(tmp_path / precision)
        config = EmbedConfig(faces=faces.folder, model=model, out=out, precision=precision, gpu=True)  # type: ignore[arg-type]
        with ray_session():
            column = embed_faces(config).read("embeddings")["embedding"]
        np.testing.assert_allclose(np.stack(column.to_numpy(zero_copy_only=False)), expected, atol=off)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("side", [224, 112])
def test_micro_batches_are_augmented_as_on_the_cpu(side: int, compiled: bool) -> None:
    """But for products in float16, which move a pixel by at most one grey level before contrast and gain."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 28, 28, 3)).astype(np.uint8)
    faces = torch.from_numpy(noise.repeat(8, axis=1).repeat(8, axis=2))
    drawn, config = torch.from_numpy(draws(32)), AugmentConfig(**OFTEN)
    gpu = torch.device("cuda")
    found = augmented(faces, drawn, side, config, rows=16, device=gpu, compiled=compiled).cpu().float()
    difference = (found - augment_batch(faces, drawn, side, config).float()).abs()
    assert difference.mean() <= 0.15
    assert (difference > 2).float().mean() <= 0.001
