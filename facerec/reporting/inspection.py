"""What alignment left, to look at: counts, quality, and samples of faces and rejects on one page.

Memory holds three numbers a face, two words a reject, and the images of the sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from facerec import publish, storage
from facerec.errors import ConfigError, DatasetError
from facerec.records import Shown
from facerec.reporting import figures, page, pictures

MOST_SAMPLES = 50
"""The page carries its pictures, and as many again of rejects; it stays below 15 MB, whatever they show."""
MOST_CONFLICTS = 100
"""Files under several names that the page lists."""
LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
SIZE, CONFIDENCE, BLUR = "face size, pixels", "confidence", "blur (low is blurred)"
DECIMALS = {SIZE: 0, CONFIDENCE: 4, BLUR: 0}


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """A look at aligned faces: counts, rejects by reason, quality, and samples, in the terminal and as one page."""

    faces: str = field(kw_only=False)
    """Folder of the aligned faces, local or s3://."""
    out: str = "inspect.html"
    """Where the page goes."""
    samples: int = 24
    """Faces shown beside their photographs, and about as many rejects, some of every reason."""

    def __post_init__(self) -> None:
        if not 0 <= self.samples <= MOST_SAMPLES:
            raise ConfigError(f"samples is {self.samples}; choose 0 to {MOST_SAMPLES} (--samples)")
        if not self.out.endswith(".html"):
            raise ConfigError(f"out is {self.out!r}; name an .html file (--out)")


def inspect(config: InspectConfig) -> str:
    """Write the page and give counts and quality as text. Raises DatasetError or ConfigError, and then writes nothing."""
    storage.require_writable_file(config.out, "--out")
    faces = publish.open_dataset(config.faces, "jobs/align.py")
    if not faces.files("faces"):
        raise DatasetError(f"{faces.folder} holds no aligned faces; name the folder that jobs/align.py wrote")
    measures = _measures(faces)
    contacts = pictures.contacts(faces, config.samples)
    rejects = pictures.rejects(faces, config.samples)
    counts = _counts(faces)
    quantiles = {name: _quantiles(values, DECIMALS[name]) for name, values in measures.items()}
    conflicts = faces.manifest.get("label_conflicts", [])
    listed = conflicts[:MOST_CONFLICTS]
    named = Shown(frozenset(name for conflict in listed for name in conflict["identities"] if name))
    html = page.fill(
        "inspection.html",
        {name: figures.histogram(values, name, log=name != CONFIDENCE) for name, values in measures.items()},
        Shown.of([*contacts, *rejects]) | named,
        faces=faces,
        counts=counts,
        conflicts=listed,
        more_conflicts=len(conflicts) - len(listed),
        levels=[f"{level:.0%}" for level in LEVELS],
        quantiles=quantiles,
        contacts=contacts,
        rejects=rejects,
    )
    try:
        storage.write_bytes(storage.absolute(config.out), html.encode())
    except OSError as error:
        raise ConfigError(f"{config.out} cannot be written: {error} (--out)") from None
    return "\n".join(_lines(counts, quantiles))


def _measures(faces: publish.Dataset) -> dict[str, NDArray[np.float64]]:
    """Size (the box's shorter side), confidence and blur of every face that has them; a measure nobody has is left out."""
    found: dict[str, list[NDArray[np.float64]]] = {SIZE: [], CONFIDENCE: [], BLUR: []}
    for table in faces.tables("faces", ["box", "confidence", "blur"]):
        boxes = np.reshape(table["box"].combine_chunks().drop_null().flatten(), (-1, 4))
        found[SIZE].append(np.abs(boxes[:, 2:] - boxes[:, :2]).min(axis=1))
        found[CONFIDENCE].append(table["confidence"].drop_null().to_numpy())
        found[BLUR].append(table["blur"].drop_null().to_numpy())
    joined = {name: np.concatenate(values) for name, values in found.items()}
    return {name: values[np.isfinite(values)] for name, values in joined.items() if np.isfinite(values).any()}


def _quantiles(values: NDArray[np.float64], decimals: int) -> list[str]:
    return [f"{value:,.{decimals}f}" for value in np.quantile(values, LEVELS)]


def _counts(faces: publish.Dataset) -> dict[str, int]:
    """Every count of the manifest under the name that a reader knows it by."""
    counts = faces.manifest["counts"]
    named = {
        "photographs": counts["photographs"],
        "photographs with a face": counts["photographs_with_faces"],
        **{f"photographs rejected: {reason}": count for reason, count in counts["image_rejects"].items()},
        "faces": counts["faces"],
        "identities": counts["identities"],
        **{f"further faces rejected: {reason}": count for reason, count in counts["face_rejects"].items()},
        "other files in the source, ignored": counts["ignored_files"],
        "files that stand under several names": len(faces.manifest.get("label_conflicts", [])),
    }
    if "near_duplicate_groups" in counts:
        named["groups of faces that look the same"] = counts["near_duplicate_groups"]
    return named


def _lines(counts: dict[str, int], quantiles: dict[str, list[str]]) -> list[str]:
    width = max(map(len, counts))
    lines = [f"{name:{width}} {count:12,}" for name, count in counts.items()]
    lines.append(f"\n{'':22}" + "".join(f"{level:10.0%}" for level in LEVELS))
    return lines + [
        f"{name:22}" + "".join(f"{value:>10}" for value in row) for name, row in quantiles.items()
    ]
