"""The short evaluation that experiments compare runs by: the same people, halves and pairs for each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from facerec.evaluation.config import EvaluateConfig
from facerec.evaluation.identification import enrol, identify, nearest_neighbour
from facerec.evaluation.leakage import photographs_of_people
from facerec.evaluation.pairs import all_pairs
from facerec.evaluation.verification import verify
from facerec.scores import Floats

REPLICATES = 200
FAR = 0.01


def score_unseen(
    vectors: Floats, identities: NDArray[np.str_], hashes: NDArray[np.int64], untrained: Floats | None = None
) -> dict[str, Any]:
    """Scores of people whom the network never saw, with 95 % intervals: SVM and nearest neighbour over halves of their
    photographs, and the true accept rate at 1 % false accepts, by bootstrap of people; None where pairs are too few.

    ``vectors`` [n, d], ``identities`` [n], ``hashes`` [n] (perceptual, so that near-duplicates stay in one half). Of
    ``untrained`` vectors of the same faces the nearest neighbour alone, over the same halves.
    """
    config = EvaluateConfig(strangers=0)
    enrolled = enrol(identities, photographs_of_people(identities, hashes), config, set())
    identified, _ = identify(vectors, enrolled, config.seed)
    verified = verify(all_pairs(vectors, identities, config.seed), REPLICATES, config.seed)
    found = [row for row in verified.get("true_accepts", []) if row["far"] == FAR and row["tar"] is not None]
    control = {} if untrained is None else {"untrained": nearest_neighbour(untrained, enrolled)["accuracy"]}
    return control | {
        "svm": identified["accuracy"],
        "svm_interval": identified["interval"],
        "nearest_neighbour": identified["nearest_neighbour"]["accuracy"],
        "nearest_neighbour_interval": identified["nearest_neighbour"]["interval"],
        "tar": found[0]["tar"] if found else None,
        "tar_interval": found[0]["interval"] if found else None,
    }
