"""``ray job`` on the head of a testbed, as a user there would type it."""

from __future__ import annotations

import subprocess
import sys

from cluster.testbed import ROOT, Testbed

RAY = [sys.executable, "-m", "ray.scripts.scripts", "job"]
DASHBOARD = "--address=http://127.0.0.1:8265"
GIVEN = ["--runtime-env", "cluster/runtime_env.yaml", "--working-dir", "."]


def ray_job(testbed: Testbed, verb: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``ray job VERB WORDS``, with this environment beside the testbed's."""
    given = [f"{name}={value}" for name, value in environment.items()]
    command = [*testbed.inside("head"), "env", *given, *RAY, verb, DASHBOARD, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)


def submit(
    testbed: Testbed, name: str, command: list[str], *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command as a job of this name, with what cluster/README.md gives a job."""
    return ray_job(testbed, "submit", *GIVEN, "--submission-id", name, *flags, "--", *command, **environment)
