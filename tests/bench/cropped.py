"""`make bench-cropped`: does straightening pay? People of $FACEREC_DATA/pins, trained from aligned and from cropped faces.

Cropped are the same photographs' same boxes, as a detector alone gives them: the box's square, resized. All else is
the same: people, split, network, steps, seed. Scored on people that neither run saw.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from facerec import publish, storage
from facerec.decoding import decode
from tests.bench.targets import Row, conclude

ROOT = Path(__file__).parents[2]
OUT = Path("build/cropped")
RECIPE = {
    "model.backbone": "resnet10t",
    "model.side": "96",
    "batch": '{"p": 32, "k": 4}',
    "mining": '{"strategy": "batch_hard", "soft": 5}',
    "optimizer": '{"lr": 0.003, "warmup": 100}',
    "steps": "600",
}


def main() -> None:
    """Align, crop, train on both, score both, print."""
    if "FACEREC_DATA" not in os.environ:
        sys.exit("bench-cropped: FACEREC_DATA is not set; point it at the folder that holds pins")
    pins = Path(os.environ["FACEREC_DATA"]) / "pins"
    aligned = _pipeline(pins, "aligned", [])
    faces = publish.open_dataset(str(OUT / "aligned" / "faces"), "jobs/align.py")
    with ThreadPoolExecutor(2) as pool:
        rows = faces.read("faces", ["identity", "source_uri", "face_id", "box"]).to_pylist()
        list(pool.map(_crop, rows))
    cropped = _pipeline(OUT / "crops", "cropped", ["--align.detector", "none"])
    table = []
    for name, report in (("aligned", aligned), ("cropped", cropped)):
        for network in ("trained", "untrained", "pixels"):
            scores = report["identification"][network]
            table.append(Row(f"{name}, {network}: SVM", scores["accuracy"], ""))
            table += [Row(f"  from {low:.3f} to", high, "") for low, high in [scores["interval"]]]
    conclude("bench-cropped", table, [f"{faces.manifest['counts']['faces']} faces; {RECIPE}"])


def _pipeline(source: Path, name: str, extra: list[str]) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "jobs" / "pipeline.py"), "--source", str(source)]
    command += ["--out", str(OUT / name), *extra]
    for key, value in RECIPE.items():
        command += [f"--train.{key}", value]
    subprocess.run(command, check=True)
    return storage.read_json(str((OUT / name / "report.json").absolute()))


def _crop(row: dict[str, Any]) -> None:
    """The box's square about its centre, black where it passes the photograph's edge."""
    path = OUT / "crops" / row["identity"] / f"{row['face_id']}.png"
    if path.exists():
        return
    image = Image.fromarray(decode(storage.read_bytes(row["source_uri"])))
    corners = np.array(row["box"]).reshape(2, 2)
    half = (corners[1] - corners[0]).max() / 2
    box = np.concatenate([corners.mean(axis=0) - half, corners.mean(axis=0) + half])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.crop(tuple(np.round(box).astype(int).tolist())).save(path)


if __name__ == "__main__":
    main()
