"""Faces to a model: DDP over a Ray cluster, triplets mined over the exact global batch."""

from __future__ import annotations

from facerec.cli import main
from facerec.session import ray_session
from facerec.training.config import TrainConfig
from facerec.training.fit import train
from facerec.training.forecast import forecast


def run(config: TrainConfig) -> None:
    """Train, or go on from the last checkpoint of the same run; --num_workers 0 needs no Ray."""
    if config.workers == (0, 0):
        train(config)
        return
    with ray_session():
        train(config)


if __name__ == "__main__":
    main("train", TrainConfig, run, plan=forecast)
