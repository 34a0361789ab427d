"""`make chaos-align`: one alignment of 2,000 drawn photographs under 22 SIGKILLs, and the faces of an undisturbed one.

Killed are detector actors, raylets and the driver, in a seeded order, each as soon as some more parts are finished; every
fifth kill comes before the run has recovered from the one before. A killed raylet is replaced by a new node, an ended
driver by the same command.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pyarrow as pa

from facerec import publish
from facerec.synthetic import SyntheticConfig, write_collection
from tests.bench.chaos import LIMIT_S, Disturbed, apart, cluster, undisturbed
from tests.bench.targets import Row, conclude
from tests.support.job import Restartable
from tests.support.nodes import Nodes

PEOPLE, PHOTOGRAPHS, PART, SEED = 40, 50, 10, 0
PARTS = PEOPLE * PHOTOGRAPHS // PART
KILLS = ["actor"] * 8 + ["raylet"] * 6 + ["driver"] * 8


def main() -> None:
    """Align undisturbed, align under kills, compare, print, and exit 1 where it fell short."""
    with cluster(2) as (folder, nodes):
        count = write_collection(
            folder / "photographs", SyntheticConfig(identities=PEOPLE, photographs=PHOTOGRAPHS)
        )
        arguments = ["--source", str(folder / "photographs"), "--part", str(PART)]
        quiet, job = (
            PartJob("align.py", arguments, folder, name, nodes.address)
            for name in ("undisturbed", "disturbed")
        )
        print(f"chaos-align: {count} photographs undisturbed first", flush=True)
        alone = undisturbed(quiet)
        began = time.monotonic()
        chaos = Chaos(nodes, job, "Aligner", KILLS, PARTS)
        chaos.run()
        _report(chaos, quiet, job, (alone, time.monotonic() - began))


class PartJob(Restartable):
    """A job that publishes parts below ``folder/name``."""

    def __init__(self, job: str, arguments: list[str], folder: Path, name: str, address: str) -> None:
        self.out = folder / name
        arguments = [*arguments, "--out", str(self.out)]
        super().__init__(job, arguments, folder / f"{name}.log", {"RAY_ADDRESS": address})

    def parts(self) -> dict[str, int]:
        """The finished parts, and when each was written."""
        with contextlib.suppress(FileNotFoundError):
            return {path.name: path.stat().st_mtime_ns for path in (self.out / "parts").glob("*.parquet")}
        return {}

    def read(self, kind: str, order: str) -> pa.Table:
        """All rows of the published dataset, sorted."""
        return publish.open_dataset(str(self.out), "jobs/align.py").read(kind).sort_by(order)


class Chaos:
    """The disturbed run: kills what is drawn when enough parts are finished, and keeps the run going."""

    def __init__(self, nodes: Nodes, job: PartJob, actor: str, kills: list[str], parts: int) -> None:
        """``actor`` is a word of the actors' command line; ``parts`` is how many the whole job has."""
        self.job, self._kills, self._all = job, kills, parts
        self.killed: list[str] = []
        self.redone: set[str] = set()
        """Finished parts that were written again."""
        self._parts: dict[str, int] = {}
        self.disturbed = Disturbed(nodes, job, actor, SEED)

    def run(self) -> None:
        """All kills, then to the end of the job."""
        random = self.disturbed.random
        for number, what in enumerate(random.sample(self._kills, len(self._kills))):
            more = random.randint(1, self._all // len(self._kills))
            self._watch_until(len(self._parts) + more, 2.0 if number % 5 == 4 else LIMIT_S)
            while not self._kill(what):
                self._watch()
            print(
                f"{len(self.killed):3}  {self.killed[-1]:7} with {len(self._parts)} parts finished",
                flush=True,
            )
        while self.disturbed.driver.poll() != 0:
            self._watch()

    def _watch_until(self, parts: int, seconds: float) -> None:
        """Until so many parts are finished, or all, or the time is over."""
        until = time.monotonic() + seconds
        while len(self._parts) < min(parts, self._all) and time.monotonic() < until:
            self._watch()

    def _kill(self, what: str) -> bool:
        """Whether there was one to kill. Once all parts are finished, only the driver is left to be killed."""
        what = "driver" if len(self._parts) == self._all else what
        if not self.disturbed.kill(what):
            return False
        self.killed.append(what)
        return True

    def _watch(self) -> None:
        time.sleep(0.1)
        for name, written in self.job.parts().items():
            if self._parts.setdefault(name, written) != written:
                self.redone.add(name)
        self.disturbed.tend(finished=True)


def _report(chaos: Chaos, quiet: PartJob, job: PartJob, took: tuple[float, float]) -> None:
    faces, others = (run.read("faces", "face_id") for run in (quiet, job))
    same_ids = faces["face_id"].equals(others["face_id"])
    distance = apart(faces["box"], others["box"]) if same_ids else float("inf")
    rejects = [run.read("rejects", "source_uri") for run in (quiet, job)]
    rows = [
        Row("the alignment, undisturbed", took[0], "s"),
        Row("the alignment, disturbed", took[1], "s"),
        *(Row(f"kills: {what}", chaos.killed.count(what), "") for what in ("actor", "raylet", "driver")),
        Row("kills", len(chaos.killed), "", at_least=20),
        Row("times that the driver gave up by itself", chaos.disturbed.exits, ""),
        Row("finished parts written again", len(chaos.redone), "", at_most=0),
        Row("faces of the undisturbed run", faces.num_rows, ""),
        Row("faces of the disturbed run", others.num_rows, ""),
        Row("the same face_ids (1 is yes)", same_ids, "", at_least=1),
        Row("boxes apart, at most", distance, "px", at_most=0.01),
        Row("the same pixels (1 is yes)", faces["image"].equals(others["image"]), "", at_least=1),
        Row("the same rejects (1 is yes)", rejects[0].equals(rejects[1]), "", at_least=1),
    ]
    conclude("chaos-align", rows, [f"parts of {PART} photographs; two nodes of one CPU"])


if __name__ == "__main__":
    main()
