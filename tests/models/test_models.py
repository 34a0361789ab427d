"""Claims about the network, its file format and its input."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from facerec.errors import ConfigError, DatasetError, MismatchError
from facerec.models.embedder import INCEPTION, ModelConfig, build
from facerec.models.format import load_model, save_model
from facerec.models.images import decode_jpeg, resize, to_input
from facerec.schema import Preprocessing

SMALL = ModelConfig(side=64)
CONTRACT = Preprocessing().to_json()


@pytest.mark.parametrize(
    "config", [SMALL, ModelConfig(backbone=INCEPTION, side=96)], ids=lambda c: c.backbone
)
def test_embeddings_are_unit_vectors_of_128(config: ModelConfig) -> None:
    embeddings = build(config, seed=0).eval()(torch.randn(3, 3, config.side, config.side))
    assert embeddings.shape == (3, 128)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


def test_equal_seeds_give_equal_weights_and_leave_torch_randomness_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = build(SMALL, 1), build(SMALL, 1), build(SMALL, 2)
    assert torch.equal(before, torch.get_rng_state())
    weights = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_unknown_backbone_is_one_line_that_names_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"resnet1O.*--model\.backbone"):
        build(ModelConfig(backbone="resnet1O"), 0)


def test_a_side_the_backbone_cannot_take_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"cannot embed 40 pixel images.*--model\.side"):
        build(ModelConfig(backbone=INCEPTION, side=40), 0)


@pytest.mark.parametrize("wrong", [{"side": 8}, {"side": 500}, {"dropout": 1.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--model"):
        ModelConfig(**wrong)  # type: ignore[arg-type]


def test_a_saved_model_comes_back_bit_equal(tmp_path: Path) -> None:
    model = build(SMALL, 3)
    model(torch.randn(4, 3, 64, 64))  # running statistics that are not the initial ones
    card = save_model(str(tmp_path), model, SMALL, CONTRACT, {"steps": 5})
    back, read = load_model(str(tmp_path))
    assert read == card
    assert read.about == {"steps": 5}
    assert not back.training
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(images), back(images))


def test_the_model_id_is_of_the_content(tmp_path: Path) -> None:
    ids = [
        save_model(str(tmp_path / str(i)), build(SMALL, seed), SMALL, CONTRACT, {}).model_id
        for i, seed in enumerate([1, 1, 2])
    ]
    assert ids[0] == ids[1] != ids[2]


def test_a_missing_or_damaged_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no model"):
        load_model(str(tmp_path))
    save_model(str(tmp_path), build(SMALL, 0), SMALL, CONTRACT, {})
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DatasetError, match="damaged"):
        load_model(str(tmp_path))
    weights.unlink()
    with pytest.raises(DatasetError, match=r"no model\.safetensors"):
        load_model(str(tmp_path))


def test_a_damaged_card_is_one_line(tmp_path: Path) -> None:
    save_model(str(tmp_path), build(SMALL, 0), SMALL, CONTRACT, {})
    said = json.loads((tmp_path / "config.json").read_text())
    for key, value, why in (
        ("preprocessing", "RGB", "preprocessing is 'RGB', not an object"),
        ("model_id", None, "model_id is None, not a text"),
        ("model", [], r"model is \[\], not an object"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(said | {key: value}))
        with pytest.raises(DatasetError, match=rf"config\.json is damaged: {why}; copy the model again"):
            load_model(str(tmp_path))


def test_weights_of_another_network_are_a_mismatch(tmp_path: Path) -> None:
    resnet = ModelConfig(backbone="resnet10t", side=64)
    save_model(str(tmp_path), build(resnet, 0), SMALL, CONTRACT, {})
    with pytest.raises(MismatchError, match="does not fit the network"):
        load_model(str(tmp_path))


def test_input_is_in_minus_one_to_one_rgb_and_area_averaged() -> None:
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :, ::2, 0] = 255  # red columns; averaged by twos, all half red
    tensor = to_input(image, 2)
    assert tensor.shape == (1, 3, 2, 2)
    torch.testing.assert_close(tensor[0, 0], torch.full((2, 2), 128 / 127.5 - 1))
    assert (tensor[0, 1:] == -1).all()


def test_a_jpeg_decodes_to_rgb_and_damaged_bytes_are_a_dataset_error() -> None:
    blue_green_red = np.full((8, 8, 3), (0, 0, 250), np.uint8)
    data = cv2.imencode(".jpg", blue_green_red)[1].tobytes()
    red, green, _ = decode_jpeg(data)[4, 4]
    assert red > 240 > 10 > green
    for damaged in (b"", b"no image"):
        with pytest.raises(DatasetError, match="cannot be decoded"):
            decode_jpeg(damaged)


@pytest.mark.parametrize(
    ("least", "side"), [(None, 224), (113, 224), (112, 112), (57, 112), (56, 56), (28, 28), (1, 28)]
)
@pytest.mark.parametrize("progressive", [0, 1])
def test_a_jpeg_comes_at_the_largest_reduction_that_leaves_the_pixels_asked_for(
    least: int | None, side: int, progressive: int
) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    settings = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    data = cv2.imencode(".jpg", cv2.resize(coarse, (224, 224)), settings)[1].tobytes()
    reduced, expected = decode_jpeg(data, least), resize(decode_jpeg(data), side)
    assert reduced.shape == (side, side, 3)
    assert np.abs(reduced.astype(int) - expected).mean() < 2
    assert least is not None or np.array_equal(reduced, expected)


def test_only_a_jpeg_is_reduced_and_its_shorter_side_counts() -> None:
    image = np.zeros((100, 224, 3), np.uint8)
    jpeg, png = (cv2.imencode(kind, image)[1].tobytes() for kind in (".jpg", ".png"))
    assert decode_jpeg(jpeg, 51).shape == (100, 224, 3)
    assert decode_jpeg(jpeg, 50).shape == (50, 112, 3)
    assert decode_jpeg(png, 10).shape == (100, 224, 3)
    for cut in range(len(jpeg)):  # a header that ends anywhere is no error of its own
        with contextlib.suppress(DatasetError):
            decode_jpeg(jpeg[:cut], 50)
