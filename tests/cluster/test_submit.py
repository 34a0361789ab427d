"""``ray job submit`` on hosts behind a token: who has none is refused, and a stopped job goes on where it was."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from cluster.testbed import Testbed
from facerec import publish
from facerec.synthetic import SyntheticConfig, write_collection
from tests.support.processes import await_that
from tests.support.ray_job import ray_job, submit


@pytest.mark.cluster
def test_a_job_needs_the_token_stops_by_ctrl_c_and_goes_on_when_submitted_again(shared: Path) -> None:
    write_collection(shared / "drawn", SyntheticConfig(identities=4, photographs=25))
    rows = [
        f"{path},{path.parent.name} {number}"
        for path in sorted((shared / "drawn").rglob("*.jpg"))
        for number in range(12)
    ]
    (shared / "list.csv").write_text("\n".join(["uri,identity", *rows, ""]))
    out = shared / "faces"
    align = [
        sys.executable,
        "jobs/align.py",
        "--source",
        str(shared / "list.csv"),
        "--out",
        str(out),
        "--part",
        "20",
    ]
    with Testbed(hosts=1, name="locked", shared=(shared,)) as testbed:
        refused = submit(testbed, "stranger", [*align, "--dry-run"], RAY_AUTH_TOKEN="another")
        assert refused.returncode != 0
        assert "token" in (refused.stdout + refused.stderr).lower()

        planned = submit(testbed, "planned", [*align, "--dry-run"])
        assert planned.returncode == 0, planned.stdout + planned.stderr
        assert "align: to align     1,200 photographs in 60 parts of up to 20" in planned.stdout
        assert testbed.token.read_text() not in planned.stdout + planned.stderr
        assert not out.exists()

        assert submit(testbed, "stopped", align, "--no-wait").returncode == 0
        await_that(
            lambda: len(list(out.glob("parts/*"))) >= 2, lambda: ray_job(testbed, "logs", "stopped").stdout
        )
        ray_job(testbed, "stop", "stopped")
        said = "align: interrupted; the same command goes on from here"
        await_that(
            lambda: said in ray_job(testbed, "logs", "stopped").stdout,
            lambda: ray_job(testbed, "logs", "stopped").stdout,
            60,
        )
        assert not (out / "manifest.json").exists()
        left = 1200 - 20 * len(list(out.glob("parts/*.parquet")))

        again = submit(testbed, "again", align)
        assert again.returncode == 0, again.stdout + again.stderr
        found = re.search(r"(\d+) to align", again.stdout)
        assert found, again.stdout
        assert 0 < int(found[1]) <= left, (
            "a part may have been finished after the count, and none is made again"
        )
    counts = publish.open_dataset(str(out), "jobs/align.py").manifest["counts"]
    assert counts["photographs"] == 1200
