"""A fitted SVM on disk and at work: evaluation saves it, naming asks it, erasure looks whom it knows."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facerec.errors import DatasetError
from facerec.scores import Floats

with warnings.catch_warnings():  # it asks every loaded module for every name, and torch warns of its old ones
    warnings.simplefilter("ignore", FutureWarning)
    import skops.io

TRUSTED_TYPES = ["sklearn.calibration._CalibratedClassifier", "sklearn.calibration._TemperatureScaling"]
"""What a saved SVM may hold beyond skops' own defaults. Never taken from the file."""


def save_svm(model: Any) -> bytes:
    """A fitted SVM as bytes that hold no code."""
    data: bytes = skops.io.dumps(model)
    return data


def load_svm(data: bytes) -> Any:
    """An SVM as evaluation saved it; raises DatasetError for bytes that hold any other type, and runs nothing of theirs."""
    try:
        return skops.io.loads(data, trusted=TRUSTED_TYPES)
    except Exception as error:  # noqa: BLE001  # skops and zipfile raise what they like at foreign bytes
        raise DatasetError(
            f"not an SVM that evaluation saved: {' '.join(str(error).split())[:300]}"
        ) from None


def by_margin(model: Any, vectors: Floats) -> tuple[NDArray[np.str_], Floats]:
    """Who each row [n, d] is, and how sure that is: the largest margin of anybody against the rest [n]."""
    margins = model.decision_function(vectors)
    margins = np.stack([-margins, margins], axis=1) if margins.ndim == 1 else margins
    return model.classes_[margins.argmax(axis=1)], margins.max(axis=1)


def by_probability(model: Any, vectors: Floats) -> tuple[NDArray[np.str_], Floats]:
    """The same of an SVM that was calibrated: how sure it is, is a probability."""
    probabilities = model.predict_proba(vectors)
    return model.classes_[probabilities.argmax(axis=1)], probabilities.max(axis=1)
