"""The network: an aligned face in, a point on the unit sphere out.

The head is linear -> BatchNorm -> L2 normalisation. Without the BatchNorm, hard mining drew all faces into one point
within 50 steps on real photographs; with it the vectors stay spread over the sphere.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerec import schema, seeding
from facerec.errors import ConfigError

INCEPTION = "inception_resnet_v1"
"""facenet-pytorch's InceptionResnetV1; every other backbone is a timm name."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network. Two models of equal config have weights of equal names and shapes."""

    backbone: str = "mobilenetv3_small_050"
    """``inception_resnet_v1``, or a timm name (mobilenetv3_small_050 trains on a laptop, resnet50 on a GPU)."""
    side: int = 112
    """Side of the input in pixels."""
    dropout: float = 0.0
    """Fraction of the backbone's features dropped before the head."""

    def __post_init__(self) -> None:
        if not 32 <= self.side <= schema.FACE_SIDE:
            raise ConfigError(
                f"side is {self.side}; faces are stored at {schema.FACE_SIDE} pixels, "
                f"so choose 32 to {schema.FACE_SIDE} (--model.side)"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; choose from 0 up to below 1 (--model.dropout)")


class Embedder(nn.Module):
    """Faces to unit vectors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Unit vectors, float32 [n, 128], of images [n, 3, side, side] in [-1, 1]."""
        # Normalised in fp32 whatever the autocast: distances between near positives need the digits.
        return F.normalize(self.network(images).float(), dim=1)


def build(config: ModelConfig, seed: int) -> Embedder:
    """A fresh network; equal config and seed give equal weights, and nothing is downloaded.

    Raises ConfigError where the backbone is unknown or cannot take images of this side.
    """
    check_backbone(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "weights"))
        model = Embedder(_inception(config) if config.backbone == INCEPTION else _timm(config))
    _try_side(model, config)
    return model.train()


def check_backbone(config: ModelConfig) -> None:
    """Raise ConfigError unless the backbone's name is known."""
    import timm

    if config.backbone != INCEPTION and not timm.is_model(config.backbone):
        near = timm.list_models(f"*{config.backbone[:6]}*")[:3] if config.backbone else []
        hint = f" (near: {', '.join(near)})" if near else ""
        raise ConfigError(
            f"backbone {config.backbone!r} is neither {INCEPTION} nor a timm model{hint}; "
            "choose another --model.backbone"
        )


def _inception(config: ModelConfig) -> nn.Module:
    """facenet-pytorch's network with a 128-D pair in place of its 512-D ``last_linear`` and ``last_bn``."""
    from facenet_pytorch import InceptionResnetV1

    network: nn.Module = InceptionResnetV1(pretrained=None, classify=False, dropout_prob=config.dropout)
    network.last_linear = nn.Linear(1792, schema.EMBEDDING_DIM, bias=False)
    network.last_bn = nn.BatchNorm1d(schema.EMBEDDING_DIM)
    network.logits = (
        nn.Identity()
    )  # built for classification only; unused weights would be saved and synchronised
    return network


def _timm(config: ModelConfig) -> nn.Module:
    import timm

    backbone: Any = timm.create_model(config.backbone, pretrained=False, num_classes=0)
    width = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)
    return nn.Sequential(
        OrderedDict(
            backbone=backbone,
            dropout=nn.Dropout(config.dropout),
            linear=nn.Linear(width, schema.EMBEDDING_DIM, bias=False),
            norm=nn.BatchNorm1d(schema.EMBEDDING_DIM),
        )
    )


def _try_side(model: Embedder, config: ModelConfig) -> None:
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, config.side, config.side))
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise ConfigError(
            f"backbone {config.backbone} cannot embed {config.side} pixel images ({said}); "
            "choose another --model.side or --model.backbone"
        ) from None
