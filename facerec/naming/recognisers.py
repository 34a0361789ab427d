"""Who knows people: a gallery of enrolled faces, or an SVM that was fitted on them. Both give a name and how sure it is."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from facerec import documents, publish, schema, scores, storage, svm
from facerec.errors import ConfigError, DatasetError, MismatchError, SourceError
from facerec.scores import Floats

Strings = NDArray[np.str_]


class Recogniser(Protocol):
    """What naming asks of a gallery and of an SVM alike."""

    @property
    def people(self) -> set[str]:
        """Everybody whom it can name."""

    @property
    def digest(self) -> str:
        """Another one of these is another recogniser."""

    @property
    def score(self) -> str:
        """What its scores are, in words."""

    def answer(self, vectors: Floats) -> tuple[Strings, Floats]:
        """A name for each vector [n, d], and how sure it is [n]: more is surer."""


@dataclass(frozen=True)
class Gallery:
    """Enrolled faces; whose is nearest gives the name."""

    vectors: Floats
    """[n, d], unit length."""
    identities: Strings
    """[n]"""
    digest: str
    score = "cosine similarity to the nearest enrolled face"

    @classmethod
    def read(cls, dataset: publish.Dataset) -> Gallery:
        """The faces of a published folder that have names; raises SourceError if none has one."""
        table = dataset.read("embeddings", ["identity", "embedding"])
        named = table.filter(table["identity"].is_valid())
        gallery = cls(schema.vectors(named), np.array(named["identity"].to_pylist(), str), dataset.digest)
        if not named.num_rows:
            raise SourceError(
                f"{dataset.folder} has {table.num_rows} faces and none with a name; enrol people, one folder per person, by "
                f"jobs/align.py and jobs/embed.py --faces: --photos gives no names (--gallery)"
            )
        return gallery

    @property
    def people(self) -> set[str]:
        return set(self.identities.tolist())

    def answer(self, vectors: Floats) -> tuple[Strings, Floats]:
        places, distances = scores.nearest(vectors, self.vectors)
        return self.identities[places], 1 - distances / 2

    def sureness_without_them(self) -> Floats:
        """How sure the wrong name of each enrolled face is when its person is not enrolled [n]."""
        person = np.unique(self.identities, return_inverse=True)[1]
        return 1 - scores.nearest_of_others(self.vectors, person) / 2


REPORT: documents.Shape = {
    "svm": {"sha256": str, "model_id": str},
    "identification": {"trained": {"people": [str]}},
}
"""What a report must say of its SVM."""


@dataclass(frozen=True)
class FittedSvm:
    """The SVM that an evaluation saved beside its report."""

    model: Any
    model_id: str
    """The network whose vectors it was fitted on."""
    digest: str

    @classmethod
    def read(cls, report: str) -> FittedSvm:
        """svm.skops beside a report; raises FacerecError if one is missing, or if the report is about another SVM."""
        uri = storage.absolute(report)
        if not storage.exists(uri):
            raise ConfigError(f"{report} does not exist; run jobs/evaluate.py first (--report)")
        said = storage.read_json(uri)
        if not isinstance(said.get("identification"), dict):
            raise ConfigError(
                f"{report} is of an evaluation that fitted no SVM; name one of people, not of pairs (--report)"
            )
        beside = storage.join(uri.rsplit("/", 1)[0], "svm.skops")
        if not storage.exists(beside):
            raise DatasetError(f"{beside} is not there any more; run jobs/evaluate.py again (--report)")
        again = "run jobs/evaluate.py again (--report)"
        documents.require(report, said, REPORT, again)
        data, bound = storage.read_bytes(beside), said["svm"]
        if (found := hashlib.sha256(data).hexdigest()) != bound["sha256"]:
            raise MismatchError(
                f"{beside} is not the SVM of {report}: its sha256 is {found[:12]} and not {bound['sha256'][:12]}; {again}"
            )
        fitted = cls(svm.load_svm(data), bound["model_id"], found)
        if fitted.people != set(said["identification"]["trained"]["people"]):
            raise MismatchError(
                f"{beside} knows other people than {report} says; run jobs/evaluate.py again (--report)"
            )
        return fitted

    @property
    def people(self) -> set[str]:
        return set(self.model.classes_.tolist())

    @property
    def _calibrated(self) -> bool:
        return hasattr(self.model, "predict_proba")

    @property
    def score(self) -> str:
        return "probability by the SVM" if self._calibrated else "margin of the SVM against the rest"

    def answer(self, vectors: Floats) -> tuple[Strings, Floats]:
        ask = svm.by_probability if self._calibrated else svm.by_margin
        blocks = [
            ask(self.model, vectors[at : at + scores.BLOCK]) for at in range(0, len(vectors), scores.BLOCK)
        ]
        return np.concatenate([names for names, _ in blocks]), np.concatenate([sure for _, sure in blocks])


def require_enough(faces: int, rate: float, whose: str) -> None:
    """Raise ConfigError if ``faces`` strangers are too few for this false-alarm rate."""
    if faces * rate < scores.ALARMS:
        raise ConfigError(
            f"{faces} faces of {whose} carry no false-alarm rate of {rate:g}: {scores.ALARMS} false alarms need "
            f"{math.ceil(scores.ALARMS / rate - 1e-9)} faces; take a higher rate (--false_alarms), name more strangers "
            f"(--strangers), or choose the score above which a name is given (--threshold)"
        )
