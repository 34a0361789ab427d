"""Charts of the report, as Plotly figures that read on light and on dark ground."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go

INK = "#7c8591"
"""A mid tone, legible on white and on near-black."""
TRAINED, UNTRAINED, PIXELS, OTHER = "#2f81f7", "#b08800", "#8b949e", "#bf3989"
COLORS = {"trained": TRAINED, "untrained": UNTRAINED, "pixels": PIXELS}
MOST_CONFUSED = 40
"""A confusion matrix of more people is cut to those who are most confused."""


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
    return _styled(figure, "", "SVM accuracy on people never seen", y_range=[0, 1.05])


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
    return _styled(figure, "step", "loss")


def distances(metrics: list[dict[str, Any]]) -> go.Figure:
    """Squared distances of the mined triplets: median, and the band from the 10th to the 90th percentile."""
    figure = go.Figure()
    steps = _column(metrics, "step")
    for key, name, color in (("d_ap", "anchor to positive", TRAINED), ("d_an", "anchor to negative", OTHER)):
        low, middle, high = ([row[key][at] for row in metrics if key in row] for at in range(3))
        figure.add_scatter(x=steps, y=low, line_width=0, showlegend=False, hoverinfo="skip", line_color=color)
        figure.add_scatter(
            x=steps,
            y=high,
            line_width=0,
            mode="lines",
            fill="tonexty",
            fillcolor=_faint(color),
            showlegend=False,
            hoverinfo="skip",
            line_color=color,
        )
        figure.add_scatter(x=steps, y=middle, name=name, line_color=color)
    return _styled(figure, "step", "squared L2 distance (0 to 4)")


def confusion(identification: dict[str, Any]) -> go.Figure:
    """Counts of truth against answer; the most confused people where there are many."""
    people, counts = identification["people"], identification["confusion"]
    wrong = [
        sum(row) - row[at] + sum(other[at] for other in counts) - row[at] for at, row in enumerate(counts)
    ]
    shown = sorted(sorted(range(len(people)), key=lambda at: -wrong[at])[:MOST_CONFUSED])
    places = list(
        range(len(shown))
    )  # names are labels only: as categories, two that shorten alike would be one
    labels = [_short(people[at]) for at in shown]
    figure = go.Figure(
        go.Heatmap(
            x=places,
            y=places,
            z=[[counts[row][column] for column in shown] for row in shown],
            text=[[f"truth {truth}<br>answer {answer}" for answer in labels] for truth in labels],
            colorscale=[[0, "rgba(47,129,247,0.03)"], [1, TRAINED]],
            hovertemplate="%{text}<br>%{z} photographs<extra></extra>",
        )
    )
    ticks = {"tickmode": "array", "tickvals": places, "ticktext": labels}
    figure.update_yaxes(autorange="reversed", **ticks)
    figure.update_xaxes(**ticks)
    return _styled(figure, "answer", "truth", height=560)


def _short(name: str) -> str:
    """A name as Plotly shows it as text; shortened first, so that no entity is cut in two."""
    return html.escape(name if len(name) <= 24 else f"{name[:23]}…")


def _faint(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def _column(metrics: list[dict[str, Any]], key: str) -> list[Any]:
    return [row.get(key) for row in metrics]


def _styled(
    figure: go.Figure, x: str, y: str, y_range: list[float] | None = None, height: int = 360
) -> go.Figure:
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
