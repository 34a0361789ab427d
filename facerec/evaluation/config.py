"""What an evaluation is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from facerec.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Embeddings to numbers, on people that the network never saw."""

    embeddings: str = "embeddings"
    """Vectors of the trained network."""
    control: str | None = None
    """Vectors of the untrained network for the same faces (for a run's unseen people: untrained)."""
    run: str | None = None
    """Folder of the training run: whom the network has seen (for a run's unseen people: run)."""
    faces: str | None = None
    """Folder of the aligned faces that were embedded, for the pixel control (for a run's unseen people: faces)."""
    people: Literal["unseen", "all"] = "unseen"
    """Who is scored: people that the run never saw, or all in the embeddings, which then needs no run."""
    pairs: str | None = None
    """A file in the format of LFW's pairs.txt: its pairs are verified, whatever people they are of, and nothing else is done."""
    trained_faces: str | None = None
    """Faces that the run was trained on, where they are no longer where its run.json says."""
    leakage: Literal["exclude", "report"] = "exclude"
    """What becomes of scored people that the network has seen, by name or by a near-duplicate photograph."""
    strangers: float = 0.25
    """People whom the SVM has to reject: below 1 a share of all, from 1 on a number."""
    svm_people: int = 100
    """People the SVM tells apart at most, seeded; above 100 it is linear, which cannot name who lies between others."""
    replicates: int = 200
    """Times that the people are drawn anew for the bootstrap intervals."""
    out: str = "report.json"
    """Where the numbers go; the fitted SVM goes beside them."""
    seed: int = 0
    """Decides halves, strangers, subsets, folds and the bootstrap."""

    def __post_init__(self) -> None:
        if self.strangers < 0 or (self.strangers > 1 and self.strangers != int(self.strangers)):
            raise ConfigError(
                f"strangers is {self.strangers}; choose a share below 1 or a whole number (--strangers)"
            )
        if self.svm_people < 2:
            raise ConfigError(f"svm_people is {self.svm_people}; two are needed to tell apart (--svm_people)")
        if self.replicates < 20:
            raise ConfigError(f"replicates is {self.replicates}; an interval needs 20 or more (--replicates)")

    def folder(self, name: Literal["run", "control", "faces"]) -> str | None:
        """A folder as given, or the pipeline's name for it where a run's unseen people are scored."""
        given: str | None = getattr(self, name)
        usual = {"run": "run", "control": "untrained", "faces": "faces"}[name]
        return usual if given is None and self.people == "unseen" and self.pairs is None else given
