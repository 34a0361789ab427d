"""The settings of alignment: where photographs come from and faces go, and what counts as a face."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from facerec import pool, schema, storage
from facerec.alignment.nets import Backend
from facerec.alignment.subject import Policy
from facerec.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """What counts as a face, and which face is the photograph's subject."""

    min_face: int = 20
    """Smallest face looked for, pixels of the photograph's own."""
    min_face_fraction: float = 0.05
    """The same as a part of the photograph's short side; the larger of the two counts, and 0 turns it off."""
    backend: Backend = "auto"
    """What runs the networks, the same faces either way: auto is openvino where it is installed."""
    min_confidence: float = 0.8
    """Faces that the detector is less sure of are rejects (0 to 1)."""
    subject: Policy = "center_weighted"
    """Which of several faces the photograph's name belongs to."""
    retry_tight: bool = True
    """Look again with a border, and enlarged, where nothing was found: tight crops lose 12 % otherwise."""

    def __post_init__(self) -> None:
        if self.min_face < 12:
            raise ConfigError(
                f"min_face is {self.min_face} pixels; MTCNN sees nothing below 12 (--detection.min_face)"
            )
        if not 0 <= self.min_face_fraction < 1:
            raise ConfigError(
                f"min_face_fraction is {self.min_face_fraction}; it lies in 0 to 1 (--detection.min_face_fraction)"
            )
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(
                f"min_confidence is {self.min_confidence}; it lies in 0 to 1 (--detection.min_confidence)"
            )


EVERY_FACE = DetectionConfig(min_confidence=0.95)
"""For collections, where no name vouches for there being a face: of 12 group photographs and portraits with 31 faces,
0.8 finds 33 in all, this the 31."""


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Photographs to aligned faces: detect, choose the subject, straighten to 224 x 224, publish."""

    source: str = ""
    """Photographs: a folder per person, or a .csv/.parquet manifest with uri, identity; local or s3://."""
    out: str = "faces"
    """Where the faces dataset goes; the same command again goes on, or adds what is new in the source."""
    faces: Literal["subject", "all"] = "subject"
    """subject: the one face that a photograph is named after, for training. all: every face, without names."""
    detector: Literal["mtcnn", "none"] = "mtcnn"
    """none takes each photograph, or its middle square, for a face that is aligned already."""
    detection: DetectionConfig = DetectionConfig()
    """Detection and subject policy."""
    part: int = 200
    """Photographs a part, the unit of work that a kill can lose."""
    actors: int = 0
    """Detector actors at most, one core each; 0 takes all the cores there are, and those that join."""
    gpu: bool = False
    """Detect on GPUs: each actor has one core and a share of a GPU, and finds the same faces up to rounding."""
    actors_per_gpu: int = 8
    """Actors that share one GPU: the cores that feed it. Each takes about 0.5 GB of GPU memory for its CUDA context, and
    more for what it computes."""
    seed: int = 0
    """Order of identity chunks in the shards."""

    def __post_init__(self) -> None:
        if self.part < 1 or self.actors < 0:
            raise ConfigError(
                f"part is {self.part} and actors {self.actors}; need --part >= 1 and --actors >= 0"
            )
        pool.require_valid(self)
        if self.gpu and self.detector == "none":
            raise ConfigError("detector is none, which needs no GPU; leave out --gpu or --detector")
        if self.gpu and self.detection.backend == "openvino":
            raise ConfigError(
                "detection.backend is openvino, which runs on CPUs only; choose --detection.backend torch, or leave out --gpu"
            )

    @property
    def preprocessing(self) -> schema.Preprocessing:
        """The contract of the faces: aligned crops of elsewhere are not ours, and no model may mix them up."""
        if self.detector == "none":
            return schema.Preprocessing(detector="none", template="the source's own")
        return schema.Preprocessing()

    def deciding(self) -> dict[str, Any]:
        """What decides which faces there are: the number of actors, say, does not."""
        values = {"source": storage.absolute(self.source), "faces": self.faces, "detector": self.detector}
        if self.detector == "none":
            return values
        detection = {name: value for name, value in asdict(self.detection).items() if name != "backend"}
        return values | detection
