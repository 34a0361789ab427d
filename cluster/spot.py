"""On an AWS spot worker: tells Ray when the machine will be taken away, so that training writes a checkpoint in time.

EC2 announces the end two minutes ahead in the machine's metadata, and Ray does not look there. aws.yaml starts this
beside each worker's Ray; it ends with its one message.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from datetime import datetime

METADATA = "http://169.254.169.254"
LOOK_S = 5.0
"""Seconds between two looks, as EC2 advises."""
ANSWER_S = 2.0


def main() -> None:
    """Wait for the notice, pass it on, and end."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--metadata", default=METADATA, help="where the machine's metadata is")
    metadata = flags.parse_args().metadata
    while (seconds := seconds_left(metadata)) is None:
        time.sleep(LOOK_S)
    print(f"spot: this machine ends in {seconds} s", flush=True)
    drain(seconds)


def seconds_left(metadata: str) -> int | None:
    """Seconds until the machine is taken; None where nothing is announced, or nobody answers."""
    try:
        token = _ask(f"{metadata}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        notice = _ask(
            f"{metadata}/latest/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token}
        )
        ends = datetime.fromisoformat(json.loads(notice)["time"])
    except (OSError, ValueError, KeyError):  # 404 is a urllib.error.HTTPError, which is an OSError
        return None
    return max(0, round(ends.timestamp() - time.time()))


def drain(seconds: int) -> None:
    """Tell Ray that this node ends so soon: no new work comes to it, and Ray Train tells its workers."""
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    node = ray.get_runtime_context().get_node_id()
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot interruption"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(seconds)], check=True)


def _ask(url: str, method: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        text: str = answer.read().decode()
        return text


if __name__ == "__main__":
    main()
