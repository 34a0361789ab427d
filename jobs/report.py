"""Numbers to pictures: one self-contained report.html."""

from __future__ import annotations

from facerec.cli import main
from facerec.reporting.page import ReportConfig, write_report


def run(config: ReportConfig) -> None:
    """Write the page."""
    print(f"report: {write_report(config)}")


if __name__ == "__main__":
    main("report", ReportConfig, run)
