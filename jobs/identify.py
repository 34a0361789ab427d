"""Embeddings to names: each face's person, or unknown at a stated rate of false alarms."""

from __future__ import annotations

from facerec.cli import main
from facerec.naming.pipeline import IdentifyConfig, identify


def run(config: IdentifyConfig) -> None:
    """Name every face, and print how many are known and what the false-alarm rate was measured on."""
    names = identify(config)
    about, counts = names.manifest, names.manifest["counts"]
    print(
        f"identify: {counts['named']} of {counts['faces']} faces named, {counts['unknown']} unknown "
        f"({about['people']} people enrolled), in {names.folder}"
    )
    given = f"identify: a name is given above {about['threshold']:.3f} ({about['score']})"
    if about["false_alarms"] is None:
        print(f"{given}, as --threshold says; no rate of false alarms was measured")
        return
    people = f"of {about['stranger_people']} people: " if about["stranger_people"] else ""
    print(
        f"{given}: at most {about['false_alarms']:.2%} of {about['stranger_faces']} faces are above it, "
        f"{people}{about['strangers']}"
    )


if __name__ == "__main__":
    main("identify", IdentifyConfig, run)
