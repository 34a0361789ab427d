"""Numbers to pictures: one self-contained report.html."""

from __future__ import annotations

from facerec.reporting.page import ReportConfig, write_report

from facerec.cli import main


def run(config: ReportConfig) -> None:
    """Write the page."""
    print(f"report: {write_report(config)}")


if __name__ == "__main__":
    main("report", ReportConfig, run)
