"""Several actors share a GPU, which is refused or waited for where there is none. Ray is told of a GPU; CUDA is not needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch

from facerec import pool, session
from facerec.alignment.config import AlignConfig, DetectionConfig
from facerec.embedding.config import EmbedConfig
from facerec.embedding.embedder import claimed
from facerec.errors import ConfigError
from facerec.lock import exclusive
from facerec.models.embedder import ModelConfig, build
from facerec.models.format import read_card, save_model
from facerec.schema import Preprocessing
from facerec.synthetic import SyntheticConfig, write_collection

JOBS = Path(__file__).parents[1] / "jobs"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def write_model(folder: Path) -> str:
    config = ModelConfig(side=64)
    save_model(str(folder), build(config, seed=0), config, Preprocessing().to_json(), {})
    return str(folder)


SHARED = """
import os, time
import pyarrow as pa, ray
from facerec.embedding.config import EmbedConfig
from facerec.pool import unpacked, worked

class Counter:
    def __call__(self, batch):
        time.sleep(0.2)
        held = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        return pa.table({"rows": [unpacked(batch).num_rows], "gpus": [len(held)], "actor": [os.getpid()]})

ray.init("local", num_cpus=4, num_gpus=1, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)
parts = [pa.table({"row": list(range(rows))}) for rows in (3, 700, 5) * 10]
print(list(worked(EmbedConfig(gpu=True, actors_per_gpu=ACTORS), parts, Counter, ())))
"""


@pytest.mark.parametrize("actors", [1, 3])
def test_so_many_actors_share_a_gpu_and_each_is_given_it_and_whole_parts(actors: int) -> None:
    script = SHARED.replace("ACTORS", str(actors))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = ast.literal_eval(done.stdout.splitlines()[-1])
    assert sorted((row["rows"], row["gpus"]) for row in rows) == sorted([(3, 1), (700, 1), (5, 1)] * 10)
    assert len({row["actor"] for row in rows}) == actors


def test_the_shares_fit_on_one_gpu_in_the_units_of_ray() -> None:
    for actors in range(1, pool.MOST_PER_GPU + 1):
        assert 9_900 <= actors * round(pool.share(actors) * 10_000) <= 10_000, actors


@pytest.mark.parametrize("config", [AlignConfig, EmbedConfig])
@pytest.mark.parametrize("actors", [0, -1, 101])
def test_a_number_of_actors_that_cannot_share_a_gpu_is_refused(config: type, actors: int) -> None:
    said = rf"actors_per_gpu is {actors}; it must be 1 to 100 \(--actors_per_gpu\)"
    with pytest.raises(ConfigError, match=said):
        config(actors_per_gpu=actors)


def test_what_does_not_run_on_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"openvino, .* --detection\.backend torch, or leave out --gpu"):
        AlignConfig(gpu=True, detection=DetectionConfig(backend="openvino"))
    with pytest.raises(ConfigError, match=r"detector is none, .* leave out --gpu or --detector"):
        AlignConfig(gpu=True, detector="none")
    with pytest.raises(ConfigError, match=r"openvino runs on CPUs only .* --backend torch"):
        EmbedConfig(gpu=True, backend="openvino")


def test_a_gpu_does_not_decide_which_faces_and_vectors_a_folder_holds(tmp_path: Path) -> None:
    assert AlignConfig(gpu=True, actors_per_gpu=3).deciding() == AlignConfig().deciding()
    model, out = str(tmp_path / "model"), str(tmp_path / "out")
    save_model(
        model, build(ModelConfig(side=64), seed=0), ModelConfig(side=64), Preprocessing().to_json(), {}
    )
    card = read_card(model)
    with exclusive(out, "--out") as fence:
        before = claimed(out, EmbedConfig(model=model, out=out), card, {}, fence)
        after = claimed(out, EmbedConfig(model=model, out=out, gpu=True, actors_per_gpu=3), card, {}, fence)
    assert before.precision == after.precision


@pytest.mark.parametrize("config", [AlignConfig(gpu=True), EmbedConfig(gpu=True)])
def test_a_ray_of_this_machine_without_a_gpu_is_refused_and_a_cluster_is_waited_for(
    config: AlignConfig | EmbedConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    pool.require_gpu(config)
    pool.say_if_waiting(config, "align")
    assert "align: waiting: gpu is true, and the cluster has 0 GPUs now" in capsys.readouterr().out
    monkeypatch.setattr(session, "alone", lambda: True)
    with pytest.raises(ConfigError, match=r"Ray finds 0 GPUs on this machine .* leave out --embed\.gpu"):
        pool.require_gpu(config, "--embed.gpu")
    pool.require_gpu(AlignConfig())
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    pool.require_gpu(config)
    pool.say_if_waiting(config, "align")
    assert capsys.readouterr().out == ""


@without_gpu
@pytest.mark.parametrize(
    "job",
    [
        "align.py --source DRAWN --gpu true",
        "embed.py --photos DRAWN --model MODEL --gpu true",
        "pipeline.py --source DRAWN --embed.gpu true",
    ],
)
def test_a_job_on_a_machine_without_a_gpu_is_one_line_and_writes_nothing(job: str, tmp_path: Path) -> None:
    write_collection(tmp_path / "drawn", SyntheticConfig(identities=12, photographs=4, side=64))
    write_model(tmp_path / "model")
    name, *flags = (
        job.replace("DRAWN", str(tmp_path / "drawn")).replace("MODEL", str(tmp_path / "model")).split()
    )
    command = [sys.executable, str(JOBS / name), *flags, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stderr
    assert "Ray finds 0 GPUs on this machine where at least 1 is needed" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


WITHOUT_CUDA = """
import sys, ray
from facerec.alignment.config import AlignConfig
from facerec.alignment.pipeline import align_source
from facerec.cli import main
from facerec.session import ray_session

def run(config):
    ray.init("local", num_cpus=1, num_gpus=1, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)
    with ray_session():
        align_source(config)

main("align", AlignConfig, run)
"""


@without_gpu
def test_a_worker_whose_torch_finds_no_gpu_ends_the_job_with_one_line(tmp_path: Path) -> None:
    write_collection(tmp_path / "drawn", SyntheticConfig(identities=1, photographs=1, side=64))
    flags = ["--source", str(tmp_path / "drawn"), "--out", str(tmp_path / "out"), "--gpu", "true"]
    command = [sys.executable, "-c", WITHOUT_CUDA, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stderr
    assert "gpu is true, but torch finds no GPU here; install torch for CUDA" in done.stderr.splitlines()[-1]
