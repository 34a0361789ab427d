"""`make demo`: draw procedural faces, run the whole pipeline on them, and fail where it learnt too little.

With --source, real photographs are used instead, and any score is accepted.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline import PipelineConfig
from pipeline import run as run_pipeline

from facerec.cli import main, parse
from facerec.synthetic import SyntheticConfig, write_collection

PRESET = Path(__file__).parent / "presets" / "laptop.yaml"
ACCURACY, LEAD = 0.95, 0.2
"""What the demo promises on procedural faces: SVM accuracy on unseen people, and its lead over both controls."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole pipeline on one machine, in minutes."""

    out: str = "build/demo"
    """Where everything goes; the same command again goes on from there."""
    source: str | None = None
    """A folder of photographs, one folder per person, of five people or more; without it faces are drawn."""
    drawn: SyntheticConfig = SyntheticConfig()
    """How many drawn people and photographs."""


def run(config: DemoConfig) -> None:
    """Draw, run the pipeline with the laptop preset, compare with what is promised."""
    started = time.monotonic()
    source = config.source
    if source is None:
        source = f"{config.out}/photographs"
        written = write_collection(Path(source), config.drawn)
        print(f"demo: {written} photographs drawn into {source}", flush=True)
    arguments = ["--config", str(PRESET), "--source", source, "--out", config.out]
    report = run_pipeline(parse("pipeline", PipelineConfig, arguments))
    accuracy = {name: scores["accuracy"] for name, scores in report["identification"].items()}
    print(f"demo: {time.monotonic() - started:.0f} s; open {config.out}/report.html")
    lead = accuracy["trained"] - max(accuracy["untrained"], accuracy["pixels"])
    if config.source is None and (accuracy["trained"] < ACCURACY or lead < LEAD):
        print(
            f"demo: accuracy {accuracy['trained']:.3f} and lead {lead:.3f} fall short of {ACCURACY} and {LEAD}"
        )
        sys.exit(1)


if __name__ == "__main__":
    main("demo", DemoConfig, run)
