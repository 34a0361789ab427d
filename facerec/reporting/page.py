"""The report: one self-contained page. Names of people and files are hostile input; everything is escaped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.io
import plotly.offline
import yaml
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from facerec import documents, publish, storage
from facerec.errors import ConfigError, MismatchError
from facerec.records import Shown
from facerec.reporting import figures, people, pictures
from facerec.telemetry import read_json_lines

FORMAT = 5
"""Of report.json, as evaluation writes it."""
MOST_CONTACTS = 24
"""With more, pictures of nothing but noise could take the page above 15 MB."""
MOST_LEFT_OUT = 100
"""People without a score whom the page names."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Numbers to one page."""

    faces: str = "faces"
    """Folder of the aligned faces."""
    run: str | None = None
    """Folder of the training run, for its curves; by default the one that the report was made with."""
    report: str = "report.json"
    """The numbers, as jobs/evaluate.py leaves them."""
    embeddings: str | None = None
    """Vectors of the trained network, for the map; by default those that the report was made from."""
    out: str = "report.html"
    """Where the page goes."""
    contact_sheet: int = 24
    """Photographs shown beside their faces, and about as many rejects; 0 leaves every picture of a face out of the page."""

    def __post_init__(self) -> None:
        if not 0 <= self.contact_sheet <= MOST_CONTACTS:
            raise ConfigError(
                f"contact_sheet is {self.contact_sheet}; choose 0 to {MOST_CONTACTS} (--contact_sheet)"
            )


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that the page shows; what an evaluation did not look at is empty."""

    report: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    contacts: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    map: people.Map | None = None
    hardest: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    core_seconds: dict[str, float] = field(default_factory=dict)


def write_report(config: ReportConfig) -> str:
    """Write the page and give its URI. Raises DatasetError or ConfigError where faces or numbers are missing or no match."""
    storage.require_writable_file(config.out, "--out")
    faces = publish.open_dataset(config.faces, "jobs/align.py")
    report = _read(config)
    embeddings = publish.open_dataset(config.embeddings or report["config"]["embeddings"], "jobs/embed.py")
    if embeddings.manifest["model_id"] != report["embeddings"]["trained"]:
        raise MismatchError(
            f"{embeddings.folder} was embedded by model {embeddings.manifest['model_id']} and {config.report} is about "
            f"{report['embeddings']['trained']}; name the embeddings that it was made from (--embeddings)"
        )
    metrics = read_metrics(_run(config, report)) if report["run"] else []
    trained = report["verification"]["trained"]
    pictured = config.contact_sheet > 0
    content = Content(
        report=report,
        metrics=metrics,
        contacts=pictures.contacts(faces, config.contact_sheet),
        rejects=pictures.rejects(faces, config.contact_sheet),
        map=people.map_of(embeddings, faces if pictured else None, report["unseen_people"])
        if "unseen_people" in report
        else None,
        hardest=people.hardest(trained, faces if pictured else None),
        core_seconds=core_seconds(faces, embeddings, metrics, report),
    )
    out = storage.absolute(config.out)
    storage.write_bytes(out, render(content).encode())
    return out


def _read(config: ReportConfig) -> dict[str, Any]:
    uri = storage.absolute(config.report)
    if not storage.exists(uri):
        raise ConfigError(
            f"{config.report} does not exist; run jobs/evaluate.py first, or name another --report"
        )
    report = storage.read_json(uri)
    if report.get("format") != FORMAT:
        raise ConfigError(
            f"{config.report} has format {report.get('format')!r}; this code shows {FORMAT}: run jobs/evaluate.py again (--report)"
        )
    documents.require_report(config.report, report)
    return report


def _run(config: ReportConfig, report: dict[str, Any]) -> str:
    """The run that the report is about; raises MismatchError where the one that is named is another."""
    if config.run is None:
        return str(report["config"]["run"] or "run")
    run = documents.read_run(storage.absolute(config.run))
    if run is None or run.get("config") != (report["run"] or {}).get("config"):
        raise MismatchError(
            f"{config.run} is not the run that {config.report} is about; name that one (--run)"
        )
    return config.run


def render(shown: Content) -> str:
    """The page as text, a pure function of what it shows."""
    report = shown.report
    identification, verification = report.get("identification", {}), report["verification"]
    names = [name for name in figures.COLORS if name in verification]
    charts = {}
    if identification:
        charts["accuracy"] = figures.accuracy(identification)
        charts["confusion"] = people.confusion(identification["trained"])
    if shown.metrics:
        distance = report["run"]["config"].get("mining", {}).get("distance", "squared")
        charts |= {
            "loss": figures.loss(shown.metrics),
            "distances": figures.distances(shown.metrics, distance),
        }
        if any("validation" in line for line in shown.metrics):
            charts["validation"] = figures.validation(shown.metrics)
    if "roc" in verification["trained"]:
        charts["roc"] = figures.roc(verification)
        charts["pairs"] = figures.pair_distances(verification["trained"])
    if shown.map is not None:
        charts["map"] = shown.map.figure
    return fill(
        "page.html",
        charts,
        shows_of(shown),
        shown=shown,
        report=report,
        names=names,
        identification=identification,
        verification=verification,
        clustering=report.get("clustering", {}),
        true_accepts={name: figures.at_one_percent(verification[name]) for name in names},
        worst=people.worst(identification["trained"]) if identification else [],
        left_out=report.get("left_out_people", [])[:MOST_LEFT_OUT],
        contacts=shown.contacts,
        rejects=shown.rejects,
        configuration=yaml.safe_dump(
            {"evaluate": report["config"]} | ({"train": report["run"]["config"]} if report["run"] else {}),
            sort_keys=True,
        ),
    )


def shows_of(content: Content) -> Shown:
    """The people, faces and photographs on the page: those in pictures, charts and tables, and no others."""
    report, shown = content.report, Shown.of([*content.contacts, *content.rejects])
    for pairs in content.hardest.values():
        shown |= Shown.of(face for pair in pairs for face in pair["faces"])
    if content.map is not None:
        shown |= content.map.shows
    if "identification" in report:
        names = people.named(report["identification"]["trained"])
        shown |= Shown(frozenset([*names, *report.get("left_out_people", [])[:MOST_LEFT_OUT]]))
    return shown


def core_seconds(
    faces: publish.Dataset,
    embeddings: publish.Dataset,
    metrics: list[dict[str, Any]],
    report: dict[str, Any],
) -> dict[str, float]:
    """What each stage has cost, as far as it has left word: seconds times the cores (or GPUs) that were held."""
    trained, before = 0.0, 0.0
    for line in metrics:
        trained += (line["elapsed_s"] - before) * line["workers"]
        before = line["elapsed_s"]
    parts = [report[part] for part in ("identification", "verification", "clustering") if part in report]
    spent = {
        "align": faces.manifest.get("core_seconds", 0.0),
        "train": trained,
        "embed": embeddings.manifest.get("core_seconds", 0.0),
        "evaluate": sum(scores.get("seconds", 0.0) for part in parts for scores in part.values()),
    }
    return {stage: seconds for stage, seconds in spent.items() if seconds}


def fill(template: str, charts: dict[str, go.Figure], shows: Shown, **values: Any) -> str:
    """A template of this folder as a self-contained page with a record of whom it shows; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("facerec.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(
        **values,
        shows=htmlsafe_json_dumps(shows.to_json()),
        charts={name: Markup(_chart(name, figure)) for name, figure in charts.items()},
        plotly=Markup(plotly.offline.get_plotlyjs()),
    )


def _chart(name: str, figure: go.Figure) -> str:
    """A figure as a div and a script; its JSON can end no script."""
    text: str = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=f"chart-{name}",
        default_width="100%",
        config={"displayModeBar": False, "responsive": True},
    )
    return text


def read_metrics(run: str) -> list[dict[str, Any]]:
    """The run's telemetry, a row a logged step; empty where there is none."""
    return read_json_lines(storage.join(storage.absolute(run), "metrics.jsonl"))
