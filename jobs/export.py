"""A model to one ONNX file, checked against torch on faces before it is written."""

from __future__ import annotations

from facerec.cli import main
from facerec.models.export import ExportConfig, export_model


def run(config: ExportConfig) -> None:
    """Write the file and say how near it is to torch."""
    cosine = export_model(config)
    print(f"export: {config.out}: cosine to torch {cosine:.6f} at least")


if __name__ == "__main__":
    main("export", ExportConfig, run)
