"""Faces to vectors at speed: whatever runs the network, the vectors are those of the network itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from facerec import records
from facerec.errors import ConfigError, DatasetError, MismatchError
from facerec.models import export
from facerec.models.backends import folded, settled_backend
from facerec.models.embedder import INCEPTION, ModelConfig, build
from facerec.models.export import ExportConfig, export_model
from facerec.models.format import load_model, save_model
from facerec.models.images import to_input
from facerec.models.inference import load_embedder
from facerec.schema import Preprocessing
from tests.support.extras import needs_openvino

FACES: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (7, 224, 224, 3), dtype=np.uint8)
NOBODY = "http://127.0.0.1:9"
"""A proxy that does not answer."""
CONTRACT = Preprocessing().to_json()


@pytest.fixture(scope="module", params=["resnet10t", INCEPTION])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of a model whose BatchNorm statistics are not the initial ones."""
    config = ModelConfig(backbone=request.param, side=96)
    network, folder = build(config, seed=0), str(tmp_path_factory.mktemp("model"))
    with torch.no_grad():
        network.train()(torch.rand(8, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    save_model(folder, network, config, CONTRACT, {"faces": "digest-of-faces"})
    return folder


@pytest.fixture(scope="module")
def eager(model: str) -> NDArray[np.float32]:
    """What the network gives in plain torch, fp32, at once."""
    with torch.inference_mode():
        return load_model(model)[0](to_input(FACES, 96)).numpy()


def test_openvino_tells_nobody_that_it_is_used(tmp_path: Path) -> None:
    """Imported as it comes, it makes an id for an analytics service in the home folder."""
    needs_openvino()
    told = "import sys; print('openvino_telemetry.main' in sys.modules)"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")
    }
    for number, imports in enumerate(
        ("import facerec.models.engine as e; e.openvino().convert_model", "import openvino")
    ):
        home = tmp_path / str(number)
        home.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", f"{imports}; {told}"],
            env=environment | {"HOME": str(home), "http_proxy": NOBODY, "https_proxy": NOBODY},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(imports == "import openvino")
        assert bool(list(home.rglob("*_cid"))) == (imports == "import openvino")


@pytest.mark.parametrize("batch_size", [1, 3, 4, 64])
def test_fp32_gives_the_networks_own_vectors_at_every_batch_size(
    model: str, eager: NDArray[np.float32], batch_size: int
) -> None:
    embed = load_embedder(model, backend="torch", precision="fp32", batch_size=batch_size)
    np.testing.assert_allclose(embed(FACES), eager, atol=1e-5)


def test_openvino_gives_the_same_vectors_in_fp32_and_near_ones_in_bf16(
    model: str, eager: NDArray[np.float32]
) -> None:
    needs_openvino()
    full, half = (
        load_embedder(model, backend="openvino", precision=precision, batch_size=4)  # type: ignore[arg-type]
        for precision in ("fp32", "bf16")
    )
    np.testing.assert_allclose(full(FACES), eager, atol=1e-5)
    assert (half(FACES) * eager).sum(axis=1).min() >= 0.999


def test_bf16_in_torch_stays_near_and_of_unit_length(model: str, eager: NDArray[np.float32]) -> None:
    vectors = load_embedder(model, backend="torch", precision="bf16")(FACES)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors * eager).sum(axis=1).min() >= 0.999


def test_no_convolution_keeps_its_batchnorm_and_the_model_itself_is_untouched(model: str) -> None:
    network = load_model(model)[0]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded(network).modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_flip_is_the_renormalised_mean_of_a_face_and_its_mirror_image(model: str) -> None:
    plain, flipped = (
        load_embedder(model, backend="torch", precision="fp32", flip=flip) for flip in (False, True)
    )
    total = plain(FACES) + plain(FACES[:, :, ::-1])
    np.testing.assert_allclose(
        flipped(FACES), total / np.linalg.norm(total, axis=1, keepdims=True), atol=1e-5
    )
    np.testing.assert_allclose(flipped(FACES[:, :, ::-1]), flipped(FACES), atol=1e-5)


def test_no_faces_give_no_vectors_and_what_is_no_face_is_refused(model: str) -> None:
    embed = load_embedder(model, backend="torch")
    assert embed([]).shape == (0, 128)
    for wrong in (FACES[:, :112], FACES.astype(np.float32)):
        with pytest.raises(ConfigError, match="aligned faces are uint8"):
            embed(wrong)


def test_the_exported_file_gives_the_same_vectors_and_says_what_a_face_must_be(
    model: str, eager: NDArray[np.float32], tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    out = tmp_path / "model.onnx"
    assert export_model(ExportConfig(model=model, out=str(out))) > 0.9999
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    embed = load_embedder(str(out), batch_size=3)
    np.testing.assert_allclose(embed(FACES), eager, atol=1e-5)
    assert (embed.preprocessing, embed.model_id) == (CONTRACT, load_model(model)[1].model_id)

    import onnxruntime

    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["preprocessing"]) == CONTRACT
    assert records.onnx_metadata(out.read_bytes()) == told
    assert told["faces"] == "digest-of-faces"
    assert (session.get_inputs()[0].type, session.get_inputs()[0].shape[1:]) == ("tensor(uint8)", [96, 96, 3])


def test_an_export_that_disagrees_with_torch_is_not_written(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    monkeypatch.setattr(export, "LEAST_COSINE", 1.1)
    with pytest.raises(MismatchError, match="nothing was written"):
        export_model(ExportConfig(model=model, out=str(tmp_path / "model.onnx")))
    assert not list(tmp_path.iterdir())


def test_what_is_no_exported_model_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    with pytest.raises(DatasetError, match=r"run jobs/export\.py first"):
        load_embedder(str(tmp_path / "none.onnx"))
    (tmp_path / "other.onnx").write_bytes(b"no model")
    with pytest.raises(DatasetError, match=r"not a model that jobs/export\.py wrote"):
        load_embedder(str(tmp_path / "other.onnx"))


def test_openvino_is_taken_where_it_is_installed_and_asked_for_in_vain_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert settled_backend("auto", gpu=True) == "torch"
    with pytest.raises(ConfigError, match="--backend torch"):
        settled_backend("openvino", gpu=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert settled_backend("auto", gpu=False) == "torch"
    with pytest.raises(ConfigError, match=r"facerec\[openvino\]"):
        settled_backend("openvino", gpu=False)
