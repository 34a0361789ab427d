"""The report: one self-contained page. Names of people and files are hostile input; everything is escaped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
import plotly.io
import plotly.offline
import yaml
from markupsafe import Markup

from facerec import publish, seeding, storage
from facerec.errors import ConfigError
from facerec.reporting import figures, pictures
from facerec.telemetry import read_json_lines


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Numbers to one page."""

    faces: str = "faces"
    """Folder of the aligned faces."""
    run: str = "run"
    """Folder of the training run."""
    report: str = "report.json"
    """The numbers, as jobs/evaluate.py leaves them."""
    out: str = "report.html"
    """Where the page goes."""
    contact_sheet: int = 24
    """Photographs shown beside their faces."""

    def __post_init__(self) -> None:
        if self.contact_sheet < 0:
            raise ConfigError(f"contact_sheet is {self.contact_sheet}; choose 0 or more (--contact_sheet)")


def write_report(config: ReportConfig) -> str:
    """Write the page and give its URI. Raises where faces or numbers are missing."""
    faces = publish.open_dataset(config.faces, "jobs/align.py")
    if not storage.exists(storage.absolute(config.report)):
        raise ConfigError(
            f"{config.report} does not exist; run jobs/evaluate.py first, or name another --report"
        )
    report = storage.read_json(storage.absolute(config.report))
    out = storage.absolute(config.out)
    page = render(report, read_metrics(config.run), _contacts(faces, config.contact_sheet), _rejects(faces))
    storage.write_bytes(out, page.encode())
    return out


def render(
    report: dict[str, Any],
    metrics: list[dict[str, Any]],
    contacts: list[dict[str, Any]],
    rejects: list[dict[str, Any]],
) -> str:
    """The page as text, a pure function of what it shows."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("facerec.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    trained = report["identification"]["trained"]
    charts = {"accuracy": figures.accuracy(report["identification"]), "confusion": figures.confusion(trained)}
    if metrics:
        charts |= {"loss": figures.loss(metrics), "distances": figures.distances(metrics)}
    return environment.get_template("page.html").render(
        report=report,
        identification={name: report["identification"][name] for name in figures.COLORS},
        verification={name: report["verification"][name] for name in figures.COLORS},
        counts=report["alignment"],
        contacts=contacts,
        rejects=rejects,
        charts={name: Markup(_chart(figure)) for name, figure in charts.items()},
        configuration=yaml.safe_dump(report["run"]["config"], sort_keys=True),
        plotly=Markup(plotly.offline.get_plotlyjs()),
    )


def _chart(figure: go.Figure) -> str:
    """A figure as a div and a script; its JSON can end no script."""
    text: str = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        default_width="100%",
        config={"displayModeBar": False, "responsive": True},
    )
    return text


def read_metrics(run: str) -> list[dict[str, Any]]:
    """The run's telemetry, a row a logged step; empty where there is none."""
    return read_json_lines(storage.join(storage.absolute(run), "metrics.jsonl"))


def _contacts(faces: publish.Dataset, count: int) -> list[dict[str, Any]]:
    """Faces drawn at random from the first shard, the same ones each time."""
    table = storage.read_table(faces.uris("faces")[0])
    chosen = seeding.generator("contacts").permutation(table.num_rows)[:count]
    return [pictures.contact(row) for row in table.take(np.sort(chosen)).to_pylist()]


def _rejects(faces: publish.Dataset, count: int = 24) -> list[dict[str, Any]]:
    """Rejected photographs, a few of each reason."""
    rows = [row for row in faces.read("rejects").to_pylist() if row["level"] == "image"]
    rows.sort(key=lambda row: (row["reason"], row["source_uri"]))
    step = max(1, len(rows) // count) if count else 1
    return [{**row, "photograph": pictures.photograph(row["source_uri"])} for row in rows[::step][:count]]
