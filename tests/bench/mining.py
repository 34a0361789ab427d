"""`make bench-mining`: exact mining in row blocks against pytorch-metric-learning's miners, on 128-D unit vectors.

Each measurement is a process of its own, so that its peak memory is its own. The peer's semi-hard miner lists every
semi-hard triplet and ours takes the nearest negative of every pair, so the sets differ; both look at all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bench.targets import Row, conclude, megabytes

MARGIN, THREADS = 0.2, 2


def main() -> None:
    """Measure every case, print, and exit 1 where a target is missed."""
    peer = {name: _measured(name, 1_800, 40) for name in ("peer_semi_hard", "semi_hard")}
    hard = {name: _measured(name, 4_096, 4) for name in ("peer_batch_hard", "batch_hard")}
    large = {name: _measured(name, 65_536, 4) for name in ("batch_hard", "semi_hard")}
    whole = {per: _measured("loss_semi_hard", 65_536, per) for per in (4, 8)}
    faster = {key: peer["peer_semi_hard"][key] / peer["semi_hard"][key] for key in ("seconds", "megabytes")}
    rows = [
        Row("semi-hard, b = 1,800, K = 40: ours", peer["semi_hard"]["seconds"], "s"),
        Row("semi-hard, b = 1,800, K = 40: peer", peer["peer_semi_hard"]["seconds"], "s"),
        Row("  faster by", faster["seconds"], "x", at_least=100),
        Row("  memory, ours", peer["semi_hard"]["megabytes"], "MB"),
        Row("  memory, peer", peer["peer_semi_hard"]["megabytes"], "MB"),
        Row("  less memory by", faster["megabytes"], "x", at_least=50),
        Row("batch-hard, b = 4,096, K = 4: ours", hard["batch_hard"]["seconds"], "s"),
        Row("batch-hard, b = 4,096, K = 4: peer", hard["peer_batch_hard"]["seconds"], "s"),
        Row("batch-hard, b = 65,536, K = 4", large["batch_hard"]["seconds"], "s", at_most=30),
        Row("  memory", large["batch_hard"]["megabytes"], "MB", at_most=500),
        Row("semi-hard, b = 65,536, K = 4", large["semi_hard"]["seconds"], "s", at_most=90),
        Row("  memory", large["semi_hard"]["megabytes"], "MB", at_most=500),
        Row("  with loss and gradient", whole[4]["seconds"], "s", at_most=90),
        Row("  memory", whole[4]["megabytes"], "MB", at_most=500),
        Row("semi-hard with loss and gradient, b = 65,536, K = 8", whole[8]["seconds"], "s", at_most=150),
        Row("  memory", whole[8]["megabytes"], "MB", at_most=500),
    ]
    notes = ["The triplet sets differ: the peer lists all semi-hard triplets, ours has one a pair."]
    conclude("bench-mining", rows, notes)


def _measured(name: str, size: int, per_identity: int) -> dict[str, float]:
    """Seconds (median of three where they are short) and peak megabytes beyond those before."""
    command = [sys.executable, "-m", "tests.bench.mining", name, str(size), str(per_identity)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {key: float(value) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


def _measure(name: str, size: int, per_identity: int) -> None:
    torch.set_num_threads(THREADS)
    miner = _miner(name)
    embeddings, labels = _batch(size, per_identity)
    miner(*_batch(64, 4))
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # the peak so far was of imports; start from what is held now
    before, seconds = megabytes("VmRSS"), []
    while len(seconds) < 3 and sum(seconds) < 10:
        started = time.perf_counter()
        miner(embeddings, labels)
        seconds.append(time.perf_counter() - started)
    used = max(megabytes("VmHWM") - before, 1.0)  # below 1 MB there is no telling
    print(json.dumps({"seconds": sorted(seconds)[len(seconds) // 2], "megabytes": used}))


def _miner(name: str) -> Callable[[Tensor, Tensor], object]:
    if name.startswith("peer_"):
        return _peers(name.removeprefix("peer_"))
    from facerec.training.distances import Anchors
    from facerec.training.losses import triplet_sum
    from facerec.training.mining import Miner, MiningConfig, mine

    miner: Miner = "batch_hard" if name.endswith("batch_hard") else "semi_hard"

    def mined(embeddings: Tensor, labels: Tensor) -> object:
        return mine(miner, Anchors(embeddings, embeddings, labels.numpy(), np.arange(len(labels))), MARGIN)

    def with_loss(embeddings: Tensor, labels: Tensor) -> object:
        local = embeddings.clone().requires_grad_()
        anchors = Anchors(local, local, labels.numpy(), np.arange(len(labels)))
        triplet_sum(miner, anchors, MiningConfig(margin=MARGIN)).total.backward()  # type: ignore[no-untyped-call]
        return local.grad

    return with_loss if name.startswith("loss_") else mined


def _peers(name: str) -> Callable[[Tensor, Tensor], object]:
    from pytorch_metric_learning import miners

    return {
        "semi_hard": miners.TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard"),
        "batch_hard": miners.BatchHardMiner(),
    }[name]


def _batch(size: int, per_identity: int) -> tuple[Tensor, Tensor]:
    """Unit vectors as early training has them, people hardly told apart, float32 [size, 128], and labels."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(size) // per_identity
    centres = torch.randn(int(labels.max()) + 1, 128, generator=random)
    return F.normalize(0.3 * centres[labels] + torch.randn(size, 128, generator=random), dim=1), labels


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
