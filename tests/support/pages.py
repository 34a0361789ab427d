"""A page as facerec writes it, without charts: a head with a record of whom it shows, and any text."""

from __future__ import annotations

import html
from pathlib import Path

from jinja2.utils import htmlsafe_json_dumps

from facerec.records import ELEMENT, Shown


def write_page(path: Path, shown: Shown, text: str = "") -> None:
    """Write the page."""
    record = htmlsafe_json_dumps(shown.to_json())
    head = f'<title>facerec report</title><script type="application/json" id="{ELEMENT}">{record}</script>'
    path.write_text(f"<!doctype html><head>{head}</head><body>{html.escape(text)}</body>")
