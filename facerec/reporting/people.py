"""Who is taken for whom: the confusion of many people, the map of their faces, the pairs and the people that go wrong."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from plotly.colors import qualitative
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from facerec import publish, schema, seeding, storage
from facerec.records import Shown
from facerec.reporting import pictures
from facerec.reporting.figures import TRAINED, styled
from facerec.reporting.pictures import Picture

MOST_CONFUSED = 40
"""A confusion matrix of more people is cut to those who are most confused."""
MAP_PEOPLE, MAP_FACES = 40, 800
"""On the map, at most: more people look alike in colour, and each face costs the page 3 kB."""
THUMBNAIL, FACE = 56, 112
"""Sides, in pixels, of the faces on the map and of those in pairs."""
LEAST_FOR_TSNE = 30
"""Faces; fewer are drawn by their principal components."""
WORST = 12
"""People shown who are recognised least."""


@dataclass(frozen=True)
class Map:
    """The map of faces."""

    figure: go.Figure
    shows: Shown
    pictured: bool
    """Whether its points carry pictures of the faces."""


def most_confused(identification: dict[str, Any]) -> list[int]:
    """Places in ``people`` of those whom the confusion matrix shows: the most confused, where there are many."""
    wrong = [0] * len(identification["people"])
    for truth, answer, count in identification["confusion"]:
        if truth != answer:
            wrong[truth] += count
            wrong[answer] += count
    return sorted(sorted(range(len(wrong)), key=lambda at: -wrong[at])[:MOST_CONFUSED])


def named(identification: dict[str, Any]) -> set[str]:
    """Everybody whom the confusion matrix or the table of the people recognised least names."""
    rows = worst(identification)
    names = {identification["people"][at] for at in most_confused(identification)}
    names |= {row["identity"] for row in rows}
    return names | {row["taken_for"] for row in rows if row["taken_for"]}


def confusion(identification: dict[str, Any]) -> go.Figure:
    """Counts of truth against answer; the most confused people where there are many."""
    people = identification["people"]
    counts = {(truth, answer): count for truth, answer, count in identification["confusion"]}
    shown = most_confused(identification)
    # Names are labels only: as categories, two that shorten alike would be one.
    places = list(range(len(shown)))
    labels = [_short(people[at]) for at in shown]
    figure = go.Figure(
        go.Heatmap(
            x=places,
            y=places,
            z=[[counts.get((row, column), 0) for column in shown] for row in shown],
            text=[[f"truth {truth}<br>answer {answer}" for answer in labels] for truth in labels],
            colorscale=[[0, "rgba(47,129,247,0.03)"], [1, TRAINED]],
            # Above: beside the matrix it would take half of a phone's width.
            colorbar={"orientation": "h", "y": 1, "yanchor": "bottom", "thickness": 8},
            hovertemplate="%{text}<br>%{z} photographs<extra></extra>",
        )
    )
    ticks = {"tickmode": "array", "tickvals": places, "ticktext": labels}
    figure.update_yaxes(autorange="reversed", **ticks)
    figure.update_xaxes(**ticks)
    return styled(figure, "answer", "truth", height=560 if len(shown) < 25 else 820)


def map_of(embeddings: publish.Dataset, faces: publish.Dataset | None, people: list[str]) -> Map | None:
    """These people's faces in the plane, near where the network puts them near; None if there are fewer than three.

    Each person has a colour and a symbol of their own. A point carries the picture of its face from ``faces``, which the
    page shows under the pointer; without ``faces`` it carries none.
    """
    table = _drawn(embeddings, people)
    if table.num_rows < 3:
        return None
    places = plane(schema.vectors(table))
    shown = thumbnails(faces, table["face_id"].to_pylist(), THUMBNAIL) if faces else {}
    names = np.array(table["identity"].to_pylist(), dtype=str)
    urls = [shown[face].url if face in shown else "" for face in table["face_id"].to_pylist()]
    figure, colors = go.Figure(), qualitative.Dark24
    for number, name in enumerate(np.unique(names).tolist()):
        rows = np.flatnonzero(names == name)
        figure.add_scatter(
            x=places[rows, 0].tolist(),
            y=places[rows, 1].tolist(),
            mode="markers",
            name=_short(name),
            customdata=[urls[row] for row in rows],
            marker={"color": colors[number % len(colors)], "symbol": number // len(colors), "size": 8},
            hovertemplate="%{fullData.name}<extra></extra>",
        )
    figure.update_layout(showlegend=False, hovermode="closest")
    figure.update_xaxes(showticklabels=False)
    figure.update_yaxes(showticklabels=False)
    shows = Shown.of(table.select(["face_id", "identity"]).to_pylist())
    return Map(styled(figure, "", "", height=560), shows, pictured=faces is not None)


def _drawn(embeddings: publish.Dataset, people: list[str]) -> pa.Table:
    """Rows of some of the people, seeded; of each as many faces as fit."""
    chosen = sorted(people, key=lambda name: seeding.derive("map", name))[:MAP_PEOPLE]
    table = pa.concat_tables(
        table.filter(pc.is_in(table["identity"], value_set=pa.array(chosen)))
        for table in embeddings.tables("embeddings", ["face_id", "identity", "embedding"])
    )
    turn, seen = [], dict.fromkeys(chosen, 0)
    for name in table["identity"].to_pylist():
        turn.append(seen[name])
        seen[name] += 1
    return table.take(np.sort(np.argsort(turn, kind="stable")[:MAP_FACES]))


def plane(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Places [n, 2] of unit vectors [n, d], by t-SNE from their principal components; the same ones each time."""
    if len(vectors) < LEAST_FOR_TSNE:
        return np.asarray(PCA(2, random_state=0).fit_transform(vectors), np.float64)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return np.asarray(TSNE(2, perplexity=perplexity, random_state=0).fit_transform(vectors), np.float64)


def hardest(verification: dict[str, Any], faces: publish.Dataset | None) -> dict[str, list[dict[str, Any]]]:
    """The report's hardest pairs, each face with its picture from ``faces``; without ``faces`` there are no pictures."""
    pairs = verification["hardest"]
    wanted = [face["face_id"] for rows in pairs.values() for row in rows for face in row["faces"]]
    shown = thumbnails(faces, wanted, FACE) if faces else {}
    gone = Picture(missing="face not there any more" if faces else "picture left out (--contact_sheet 0)")
    return {
        kind: [
            {
                "distance": row["distance"],
                "faces": [{**face, "picture": shown.get(face["face_id"], gone)} for face in row["faces"]],
            }
            for row in rows
        ]
        for kind, rows in pairs.items()
    }


def worst(identification: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the people recognised least, the worst first; of equal ones those with more photographs."""
    rows = [row for row in identification["per_identity"] if row["hits"] < row["test_faces"]]
    return sorted(rows, key=lambda row: (row["hits"] / row["test_faces"], -row["test_faces"]))[:WORST]


def thumbnails(faces: publish.Dataset, face_ids: list[str], side: int) -> dict[str, Picture]:
    """Pictures of the faces that are there, by face_id; only the row groups that hold one are read."""
    wanted = pa.array(sorted(set(face_ids)), pa.string())
    found: dict[str, Picture] = {}
    for uri in faces.uris("faces"):
        ids = storage.read_table(uri, ["face_id"], expected=faces.expected(uri))["face_id"]
        here = np.flatnonzero(pc.is_in(ids, value_set=wanted).to_numpy())
        if len(here):
            rows = faces.rows(uri, here, ["face_id", "image"]).to_pylist()
            found |= {row["face_id"]: pictures.picture(row["image"]["bytes"], longest=side) for row in rows}
    return found


def _short(name: str) -> str:
    """A name as Plotly shows it as text; shortened first, so that no entity is cut in two."""
    return html.escape(name if len(name) <= 24 else f"{name[:23]}…")
