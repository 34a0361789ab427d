"""`make chaos-embed`: 400 drawn photographs embedded under 10 SIGKILLs, and the vectors of an undisturbed run.

Killed are actors, raylets and the driver, as in chaos-align.
"""

from __future__ import annotations

from facerec.models.embedder import ModelConfig, build
from facerec.models.format import save_model
from facerec.schema import Preprocessing
from facerec.synthetic import SyntheticConfig, write_collection
from tests.bench.chaos import apart, cluster, undisturbed
from tests.bench.chaos_align import Chaos, PartJob
from tests.bench.targets import Row, conclude

PEOPLE, PHOTOGRAPHS, PART = 10, 40, 8
PARTS = PEOPLE * PHOTOGRAPHS // PART
KILLS = ["actor"] * 4 + ["raylet"] * 2 + ["driver"] * 4
MODEL = ModelConfig(side=64)


def main() -> None:
    """Embed undisturbed, embed under kills, compare, print, and exit 1 where it fell short."""
    with cluster(2) as (folder, nodes):
        write_collection(folder / "photographs", SyntheticConfig(identities=PEOPLE, photographs=PHOTOGRAPHS))
        save_model(str(folder / "model"), build(MODEL, seed=0), MODEL, Preprocessing().to_json(), {})
        arguments = ["--photos", str(folder / "photographs"), "--model", str(folder / "model")]
        arguments += ["--part", str(PART), "--precision", "fp32", "--backend", "torch"]
        quiet, job = (
            PartJob("embed.py", arguments, folder, name, nodes.address)
            for name in ("undisturbed", "disturbed")
        )
        undisturbed(quiet)
        chaos = Chaos(nodes, job, "PhotographEmbedder", KILLS, PARTS)
        chaos.run()
        _report(chaos, quiet, job)


def _report(chaos: Chaos, quiet: PartJob, job: PartJob) -> None:
    rows, others = (run.read("embeddings", "face_id") for run in (quiet, job))
    same = rows["face_id"].equals(others["face_id"])
    distance = apart(rows["embedding"], others["embedding"]) if same else float("inf")
    rejects = [run.read("rejects", "source_uri") for run in (quiet, job)]
    conclude(
        "chaos-embed",
        [
            *(Row(f"kills: {what}", chaos.killed.count(what), "") for what in ("actor", "raylet", "driver")),
            Row("kills", len(chaos.killed), "", at_least=10),
            Row("times that the driver gave up by itself", chaos.disturbed.exits, ""),
            Row("finished parts written again", len(chaos.redone), "", at_most=0),
            Row("vectors of the undisturbed run", rows.num_rows, ""),
            Row("the same face_ids (1 is yes)", same, "", at_least=1),
            Row("vectors apart, at most", distance, "", at_most=1e-5),
            Row("the same rejects (1 is yes)", rejects[0].equals(rejects[1]), "", at_least=1),
        ],
        [f"parts of {PART} photographs; two nodes of one CPU"],
    )


if __name__ == "__main__":
    main()
