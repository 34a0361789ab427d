"""Any loss of pytorch-metric-learning over the gathered global batch.

What it costs: every rank computes the whole b x b loss, as that library's own distributed wrapper does, so neither
memory (O(b^2), and for some O(triplets)) nor time fall with the number of ranks; and it knows labels only, so a face
that stands twice in a batch is a pair of its own. Our own miners have neither cost. Each rank's loss is the whole
one, so the gather's backward counts it W times and DDP's mean takes that back: no factor is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from facerec.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LibraryLoss:
    """A loss, and perhaps a miner, of pytorch-metric-learning, by name."""

    loss: str | None = None
    """E.g. MultiSimilarityLoss; without it the triplet loss and miners here are used."""
    loss_args: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments."""
    miner: str | None = None
    """E.g. MultiSimilarityMiner; without it the loss takes all pairs."""
    miner_args: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments."""

    def build(self) -> tuple[nn.Module, nn.Module | None]:
        """(loss, miner); ConfigError where there is no such thing, or the loss has weights of its own to train."""
        losses, miners = _library()
        loss = _made(losses, self.loss or "", self.loss_args, "loss")
        if any(True for _ in loss.parameters()):
            raise ConfigError(
                f"{self.loss} has weights of its own, which no checkpoint here holds; choose a loss over pairs or "
                "triplets (--library.loss)"
            )
        return loss, _made(miners, self.miner, self.miner_args, "miner") if self.miner else None


def library_loss(everyone: Tensor, labels: Tensor, loss: nn.Module, miner: nn.Module | None) -> Tensor:
    """The whole loss of embeddings [b, d] and labels [b], on every rank."""
    pairs = miner(everyone, labels) if miner is not None else None
    value: Tensor = loss(everyone, labels, pairs)
    return value


def _library() -> tuple[Any, Any]:
    try:
        from pytorch_metric_learning import losses, miners
    except ModuleNotFoundError:
        raise ConfigError(
            "--library.loss needs pytorch-metric-learning, which is not installed: pip install pytorch-metric-learning"
        ) from None
    return losses, miners


def _made(module: Any, name: str, arguments: dict[str, Any], what: str) -> nn.Module:
    kind = getattr(module, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConfigError(f"pytorch-metric-learning has no {what} {name!r} (--library.{what})")
    try:
        made: nn.Module = kind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{name}: {error} (--library.{what}_args)") from None
    return made
