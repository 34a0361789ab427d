"""What a run tells the world: gauges that a Prometheus server can scrape from Ray's own endpoint."""

from __future__ import annotations

import logging
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from facerec.telemetry import Prometheus, TensorBoard, flat


def test_numbers_become_paths_and_what_is_none_is_left_out() -> None:
    assert flat({"loss": 1, "d_ap": [0.5, 2], "miner": "seed", "val": {"tar": 0.25}}) == {
        "loss": 1.0,
        "d_ap/0": 0.5,
        "d_ap/1": 2.0,
        "val/tar": 0.25,
    }


def test_curves_take_the_names_of_scores_without_a_complaint_for_each(tmp_path: Path) -> None:
    said: list[logging.LogRecord] = []
    (heard := logging.Handler()).emit = said.append  # type: ignore[method-assign]
    logger = logging.getLogger("tensorboardX")
    level = logger.level
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    try:
        curves = TensorBoard(str(tmp_path), 0)
        curves.write(1, {"validation/tar@0.01": 0.5})
        curves.close()
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)
    assert not said
    assert any(b"validation/tar_0.01" in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.usefixtures("ray_local")
def test_gauges_stand_at_rays_endpoint_under_their_names() -> None:
    gauges = Prometheus("facerec_test", "run-7")
    port = ray.nodes()[0]["MetricsExportPort"]
    until = time.monotonic() + 60
    wanted = {"ray_facerec_test_loss": 0.125, "ray_facerec_test_d_ap_0": 0.5}
    while True:
        gauges.write({"loss": 0.125, "d_ap/0": 0.5})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            lines = [line for line in page.read().decode().splitlines() if 'run="run-7"' in line]
        found = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
        if found == wanted:
            return
        assert time.monotonic() < until, found
        time.sleep(1)
