"""Validation scores are those of all pairs at once, whatever the number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from facerec.errors import ConfigError
from facerec.models.embedder import ModelConfig, build
from facerec.publish import Dataset
from facerec.scores import squared_distances, true_accept_rate
from facerec.training import validation
from facerec.training.gather import gather, world
from facerec.training.index import FaceIndex
from facerec.training.loader import FaceStore
from facerec.training.validation import FAR, Validation, ValidationConfig, chosen, compare
from tests.support.ddp import run_ddp
from tests.training.test_schedule import index_of

PEOPLE, FACES = 14, 7


def embedded(ideal: bool) -> tuple[Tensor, Tensor]:
    """Unit vectors float32 [98, 16] and labels; the ideal ones are equal within a person."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(PEOPLE).repeat_interleave(FACES)
    centres = torch.randn(PEOPLE, 16, generator=random)
    noise = 0.0 if ideal else 1.5
    return F.normalize(
        centres[labels] + noise * torch.randn(len(labels), 16, generator=random), dim=1
    ), labels


def our_scores(ideal: bool) -> dict[str, float]:
    rows, labels = embedded(ideal)
    rank, workers = world()
    cuts = [len(rows) * r // workers for r in range(workers + 1)]
    local = rows[cuts[rank] : cuts[rank + 1]]
    everyone = gather(local, [cuts[r + 1] - cuts[r] for r in range(workers)])
    return compare(local, everyone, labels, cuts[rank])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_scores_are_those_of_all_pairs_on_every_rank(world_size: int) -> None:
    rows, labels = embedded(ideal=False)
    distances = torch.cdist(rows, rows).fill_diagonal_(torch.inf)
    hits = float((labels[distances.argmin(dim=1)] == labels).float().mean())
    upper = np.triu_indices(len(rows), k=1)
    apart = squared_distances(rows.double().numpy(), rows.double().numpy())[upper]
    same = (labels.numpy()[:, None] == labels.numpy())[upper]
    rate, _ = true_accept_rate(apart[same], apart[~same], FAR)
    assert 0.1 < hits < 0.9
    for scores in run_ddp(world_size, our_scores, False):
        assert scores["nearest_neighbour"] == pytest.approx(hits, abs=1e-6)
        assert scores[f"tar@{FAR}"] == pytest.approx(rate, abs=0.02)


def test_an_ideal_embedder_scores_one() -> None:
    assert our_scores(ideal=True) == {"nearest_neighbour": 1.0, "faces": 98, f"tar@{FAR}": 1.0}


def test_too_few_pairs_carry_no_accept_rate() -> None:
    rows, labels = embedded(ideal=True)
    assert compare(rows[:14], rows[:14], labels[:14], 0) == {"nearest_neighbour": 1.0, "faces": 14}


def test_a_few_faces_of_each_identity_are_looked_at_and_none_of_the_others() -> None:
    index = index_of(5, 1, 9, 4, 7)
    ordinals, labels = chosen(index, ["p002", "p001", "p004", "p000"], ValidationConfig(faces=6, most=18))
    whose = index.codes[np.searchsorted(index.starts, ordinals, side="right") - 1]
    assert whose.tolist() == [2] * 6 + [4] * 6
    assert labels.tolist() == [0] * 6 + [2] * 6
    assert len(set(ordinals.tolist())) == 12


@pytest.mark.parametrize(("bound", "times"), [(validation.KEPT_BYTES, 1), (3 * 32 * 32 * 20 - 1, 3)])
def test_decoded_faces_are_kept_within_the_bound_and_the_scores_are_equal(
    crowd: Dataset, monkeypatch: pytest.MonkeyPatch, bound: int, times: int
) -> None:
    """Four people of five faces at 32 px, scored three times."""
    decoded, decode = 0, validation.decode_jpeg

    def counted(*arguments: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return decode(*arguments)

    monkeypatch.setattr(validation, "decode_jpeg", counted)
    monkeypatch.setattr(validation, "KEPT_BYTES", bound)
    index = FaceIndex.read(crowd)
    scored = Validation(FaceStore(crowd, index), index, index.identities[:4], ValidationConfig(), 32)
    network = build(ModelConfig(side=32), 0)
    scores = [scored.score(network, torch.device("cpu"), "fp32") for _ in range(3)]
    assert decoded == 20 * times
    assert scores[0] == scores[1] == scores[2]
    assert scores[0]["faces"] == 20


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="--validation"):
        ValidationConfig(faces=1)
