"""Numbers to pictures: one self-contained report.html."""

from __future__ import annotations

from facerec import publish, storage
from facerec.cli import main
from facerec.errors import ConfigError
from facerec.reporting.page import ReportConfig, write_report


def run(config: ReportConfig) -> None:
    """Write the page."""
    print(f"report: {write_report(config)}")


def plan(config: ReportConfig) -> dict[str, object]:
    """What would be shown."""
    storage.require_writable_file(config.out, "--out")
    counts = publish.open_dataset(config.faces, "jobs/align.py").manifest["counts"]
    if not storage.exists(storage.absolute(config.report)):
        raise ConfigError(f"{config.report} does not exist; run jobs/evaluate.py first (--report)")
    return {
        "faces": counts["faces"],
        "identities": counts["identities"],
        "pictures": f"{config.contact_sheet} photographs beside their faces, and as many rejects",
        "workers": "this process, without Ray",
        "memory": "below 1 GiB",
        "result": config.out,
    }


if __name__ == "__main__":
    main("report", ReportConfig, run, plan=plan)
