"""Charts of the report, as Plotly figures that read on light and on dark ground."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

INK = "#7c8591"
"""A mid tone, legible on white and on near-black."""
TRAINED, UNTRAINED, PIXELS, OTHER = "#2f81f7", "#b08800", "#8b949e", "#bf3989"
COLORS = {"trained": TRAINED, "untrained": UNTRAINED, "pixels": PIXELS}


def accuracy(identification: dict[str, Any]) -> go.Figure:
    """SVM accuracy of the network and its controls, with 95 % intervals."""
    names = [name for name in COLORS if name in identification]
    values = [identification[name]["accuracy"] for name in names]
    lows, highs = zip(*(identification[name]["interval"] for name in names), strict=True)
    figure = go.Figure(
        go.Bar(
            x=names,
            y=values,
            marker_color=[COLORS[name] for name in names],
            text=[f"{value:.3f}" for value in values],
            textposition="inside",
            insidetextanchor="middle",
            error_y={
                "type": "data",
                "array": [high - value for high, value in zip(highs, values, strict=True)],
                "arrayminus": [value - low for low, value in zip(lows, values, strict=True)],
                "color": INK,
            },
        )
    )
    return styled(figure, "", "SVM accuracy on people never seen", y_range=[0, 1.05])


def loss(metrics: list[dict[str, Any]]) -> go.Figure:
    """Loss and the share of active triplets against the step."""
    figure = go.Figure()
    figure.add_scatter(
        x=_column(metrics, "step"), y=_column(metrics, "loss"), name="loss", line_color=TRAINED
    )
    figure.add_scatter(
        x=_column(metrics, "step"),
        y=_column(metrics, "active_fraction"),
        name="active fraction",
        line_color=UNTRAINED,
        yaxis="y2",
    )
    figure.update_layout(
        yaxis2={
            "overlaying": "y",
            "side": "right",
            "range": [0, 1.05],
            "title": "active fraction",
            "tickmode": "linear",
            "dtick": 0.25,
        }
    )
    return styled(figure, "step", "loss")


def distances(metrics: list[dict[str, Any]], distance: str) -> go.Figure:
    """Distances (squared or l2) of the mined triplets: median, and the band from the 10th to the 90th percentile."""
    figure = go.Figure()
    steps = _column(metrics, "step")
    for key, name, color in (("d_ap", "anchor to positive", TRAINED), ("d_an", "anchor to negative", OTHER)):
        low, middle, high = ([row[key][at] for row in metrics if key in row] for at in range(3))
        _band(figure, steps, low, high, color)
        figure.add_scatter(x=steps, y=middle, name=name, line_color=color)
    return styled(
        figure, "step", "L2 distance (0 to 2)" if distance == "l2" else "squared L2 distance (0 to 4)"
    )


def validation(metrics: list[dict[str, Any]]) -> go.Figure:
    """Scores of the validation people against the step, of lines that have them; dotted, the untrained network's."""
    figure = go.Figure()
    untrained: dict[str, float] = metrics[0].get("untrained", {})
    for key, name, color in (
        ("nearest_neighbour", "nearest neighbour", TRAINED),
        ("tar@0.01", "TAR at 1 % FAR", OTHER),
    ):
        lines = [line for line in metrics if key in line.get("validation", {})]
        if lines:
            values = [line["validation"][key] for line in lines]
            figure.add_scatter(x=_column(lines, "step"), y=values, name=name, line_color=color)
        if lines and key in untrained:
            ends = {"x": [0, lines[-1]["step"]], "y": [untrained[key]] * 2}
            dotted = {"color": color, "dash": "dot"}
            figure.add_scatter(**ends, name=f"{name}, untrained", line=dotted, mode="lines")
    return styled(figure, "step", "on validation people", y_range=[0, 1.02])


def roc(verification: dict[str, Any]) -> go.Figure:
    """True against false accepts, over the false accept rates that the pairs carry; the band is the network's 95 %."""
    figure = go.Figure()
    for name in [name for name in COLORS if "roc" in verification.get(name, {})]:
        rows = verification[name]["roc"]
        rates = [row["far"] for row in rows]
        if name == "trained":
            lows, highs = zip(*(row["interval"] for row in rows), strict=True)
            _band(figure, rates, lows, highs, COLORS[name])
        figure.add_scatter(
            x=rates, y=[row["tar"] for row in rows], name=name, mode="lines", line_color=COLORS[name]
        )
    figure.update_xaxes(type="log", dtick=1, exponentformat="power")
    return styled(figure, "false accept rate", "true accept rate", y_range=[0, 1.02])


def pair_distances(verification: dict[str, Any]) -> go.Figure:
    """How far faces of one person and of two are apart, each kind's share by bin, and where 1 % of the second are accepted."""
    histogram = verification["histogram"]
    edges = np.linspace(0, histogram["to"], len(histogram["genuine"]) + 1)
    figure = go.Figure()
    for kind, name, color in (("genuine", "one person", TRAINED), ("impostor", "two people", OTHER)):
        counts = np.array(histogram[kind], np.float64)
        figure.add_bar(
            x=((edges[1:] + edges[:-1]) / 2).tolist(),
            y=(counts / max(counts.sum(), 1)).tolist(),
            width=np.diff(edges).tolist(),
            name=name,
            marker={"color": color, "line_width": 0},
            opacity=0.6,
        )
    threshold = at_one_percent(verification, "threshold")
    if threshold is not None:
        figure.add_vline(threshold, line={"color": INK, "dash": "dash"}, annotation_text="1 % false accepts")
    figure.update_layout(barmode="overlay")
    return styled(figure, "squared L2 distance", "share of the pairs")


def at_one_percent(verification: dict[str, Any], what: str = "tar") -> float | None:
    """The true accept rate (or the threshold) at 1 % false accepts; None where the pairs do not carry it."""
    values: list[float | None] = [
        row.get(what) for row in verification.get("true_accepts", []) if row["far"] == 0.01
    ]
    return values[0] if values else None


def histogram(values: NDArray[np.float64], name: str, *, log: bool) -> go.Figure:
    """How many faces have which value; with ``log``, bins are wider the larger the value, from 1."""
    counts, edges = np.histogram(np.log10(np.maximum(values, 1)) if log else values, bins=40)
    edges = 10**edges if log else edges
    figure = go.Figure(
        go.Bar(
            x=edges[:-1].tolist(),
            y=counts.tolist(),
            width=np.diff(edges).tolist(),
            offset=0,
            marker_color=TRAINED,
            customdata=edges[1:].tolist(),
            hovertemplate="%{x:.4~g} to %{customdata:.4~g}: %{y} faces<extra></extra>",
        )
    )
    if log:
        marks = (1, 2, 5) if edges[-1] < 100 * edges[0] else (1,)
        figure.update_xaxes(type="log", tickvals=[mark * 10**power for power in range(9) for mark in marks])
    return styled(figure, name, "faces", height=280)


def _band(figure: go.Figure, x: Any, lows: Any, highs: Any, color: str) -> None:
    """The space between two curves, faintly filled."""
    edge = {"mode": "lines", "line_width": 0, "line_color": color, "showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(x=list(x), y=list(lows), **edge)
    figure.add_scatter(x=list(x), y=list(highs), fill="tonexty", fillcolor=_faint(color), **edge)


def _faint(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def _column(metrics: list[dict[str, Any]], key: str) -> list[Any]:
    return [row.get(key) for row in metrics]


def styled(
    figure: go.Figure, x: str, y: str, y_range: list[float] | None = None, height: int = 360
) -> go.Figure:
    """The figure with its axes' names, on the page's ground and in its ink."""
    axis = {
        "gridcolor": "rgba(128,128,128,0.25)",
        "zerolinecolor": "rgba(128,128,128,0.4)",
        "automargin": True,
    }
    figure.update_layout(
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "family": "system-ui, sans-serif", "size": 13},
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        legend={"orientation": "h", "y": 1.12, "x": 0},
    )
    figure.update_xaxes(title=x or None, **axis)
    figure.update_yaxes(**axis)
    figure.update_layout(yaxis_title=y)
    if y_range:
        figure.update_layout(yaxis_range=y_range)
    return figure
