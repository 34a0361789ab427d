"""An experiment's page: scores, cost and collapses over one setting, a line for each combination of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import qualitative

from facerec import storage
from facerec.records import Shown
from facerec.reporting.figures import styled
from facerec.reporting.page import fill

SEED = "seed"
SHOWN = {
    "svm": "SVM accuracy on people never seen",
    "nearest_neighbour": "nearest neighbour",
    "tar": "TAR at 1 % FAR",
    "collapsed": "collapsed runs, share",
    "seconds": "seconds a run",
}


def write_page(
    uri: str, rows: list[dict[str, Any]], settings: list[str], x: str, about: dict[str, Any]
) -> str:
    """Write the page of an experiment's rows and give its URI; ``settings`` are the grid's, of which ``x`` is the axis."""
    finished = [
        row | {"collapsed": float(row["verdict"] == "collapsed")} for row in rows if "error" not in row
    ]
    charts = {
        name: over(finished, name, title, x, [each for each in settings if each not in (x, SEED)])
        for name, title in SHOWN.items()
        if any(row.get(name) is not None for row in finished)
    }
    html = fill(
        "experiment.html",
        charts,
        Shown(),
        rows=rows,
        settings=settings,
        failed=len(rows) - len(finished),
        about=about,
        x=x,
    )
    storage.write_bytes(uri, html.encode())
    return uri


def over(rows: list[dict[str, Any]], name: str, title: str, x: str, others: list[str]) -> go.Figure:
    """Mean over the seeds against ``x``, with the least and the most of them."""
    figure = go.Figure()
    groups: dict[str, dict[Any, list[float]]] = {}
    for row in rows:
        if row.get(name) is not None:
            label = ", ".join(f"{each} {row[each]}" for each in others) or "all"
            groups.setdefault(label, {}).setdefault(row.get(x, 0), []).append(float(row[name]))
    for number, (label, points) in enumerate(sorted(groups.items())):
        places = sorted(points, key=lambda place: (isinstance(place, str), place))
        means = [float(np.mean(points[place])) for place in places]
        figure.add_scatter(
            x=places,
            y=means,
            name=label,
            line_color=qualitative.Dark24[number % len(qualitative.Dark24)],
            error_y={
                "type": "data",
                "array": [max(points[place]) - mean for place, mean in zip(places, means, strict=True)],
                "arrayminus": [mean - min(points[place]) for place, mean in zip(places, means, strict=True)],
            },
        )
    if all(isinstance(place, int | float) and place > 0 for points in groups.values() for place in points):
        figure.update_xaxes(
            type="log", tickvals=sorted({place for points in groups.values() for place in points})
        )
    figure.update_layout(showlegend=True)
    return styled(figure, x, title, height=420, y_range=None if name == "seconds" else [0, 1.02])
